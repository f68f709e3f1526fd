"""The door of the app: checks the bearer token, names the model, passes the bytes on. Knows no engine.

It imports neither vLLM nor torch: it is up in a second, small, and answers 401 at once also while every engine is busy.
"""

import json
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from metagen_ray.serving.auth import is_allowed, read_token
from metagen_ray.serving.client import SESSION

ROUTES = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}


class Ingress:
    """One HTTP request in, one call of an engine replica out."""

    def __init__(self, engine: DeploymentHandle, model_name: str, token_file: str) -> None:
        self._engine = engine
        self._model_name = model_name
        self._token = read_token(token_file)

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        if not is_allowed(request.headers.get("authorization"), self._token):
            return _error(401, "send the app's token as `Authorization: Bearer <token>`")
        if request.url.path == "/v1/models" and request.method == "GET":
            return _json(200, {"object": "list", "data": [{"id": self._model_name, "object": "model"}]})
        method = ROUTES.get(request.url.path)
        if method is None or request.method != "POST":
            return _error(404, f"no {request.method} {request.url.path}; there are {', '.join(ROUTES)} and /v1/models")
        body = await request.body()
        try:
            asked = json.loads(body)
            model, streams = str(asked["model"]), bool(asked.get("stream"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _error(400, "the body must be a JSON object that names a model")
        if streams:
            return _error(400, "this app answers whole; leave `stream` out")
        if model.partition(":")[0] != self._model_name:
            return _error(404, f"no model {model!r}; ask for {self._model_name!r} or '{self._model_name}:ADAPTER'")
        handle = self._engine.options(session_id=request.headers.get(SESSION, ""))
        status, reply, headers = await handle.ask.remote(method, model, body)
        return Response(reply, status, headers=headers, media_type="application/json")


def _json(status: int, content: Any) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    content = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}})
    return Response(content, status, headers=headers, media_type="application/json")
