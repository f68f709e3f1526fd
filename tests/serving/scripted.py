"""A real loopback HTTP server that speaks the completions protocol by script. Owns sockets; knows no model."""

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
NextToken = Callable[[list[int]], Mapping[int, float]]


class Exchange:
    """One request in a script's hands."""

    def __init__(self, handler: BaseHTTPRequestHandler, closing: threading.Event) -> None:
        self._handler = handler
        self._closing = closing
        self.headers = handler.headers
        length = int(handler.headers.get("Content-Length") or 0)
        self.body: Body = json.loads(handler.rfile.read(length)) if length else {}

    def reply(self, status: int, content: Any, promised: int | None = None) -> None:
        """Send JSON; `promised` bytes in the header where more are promised than sent."""
        data = json.dumps(content).encode()
        self._handler.send_response(status)
        self._handler.send_header("Content-Type", "application/json")
        self._handler.send_header("Content-Length", str(promised or len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)
        self._handler.close_connection = promised is not None

    def hang(self) -> None:
        """Answer nothing until the server goes away."""
        self._closing.wait()


@contextmanager
def scripted_server(script: Callable[[Exchange], None]) -> Iterator[str]:
    """Serve `script` on a free loopback port; yields the URL."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            script(Exchange(self, closing))

        do_GET = do_POST = _serve

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()


def echo_choices(body: Body) -> Body:
    """A completion per prompt and sample that says which it is: "<last token or text>:<sample>"."""
    last = [p if isinstance(p, str) else p[-1] for p in body["prompt"]]
    said = [(p, s) for p in last for s in range(body["n"])]
    choices = [
        {
            "index": i,
            "text": f"{p}:{s}",
            "finish_reason": "stop",
            "token_ids": None if isinstance(p, str) else [p, s],
        }
        for i, (p, s) in enumerate(said)
    ]
    return {"choices": choices}


def logprob_choices(body: Body, next_token: NextToken) -> Body:
    """The log-probabilities that `next_token` gives the candidates asked for, after each prompt."""

    def named(prompt: list[int]) -> dict[str, float]:
        share = next_token(prompt)
        return {f"token_id:{i}": math.log(share.get(i, 0.0) or 1e-300) for i in body["logprob_token_ids"]}

    choices = [
        {"index": i, "text": "", "finish_reason": "length", "logprobs": {"top_logprobs": [named(prompt)]}}
        for i, prompt in enumerate(body["prompt"])
    ]
    return {"choices": choices}


def model_script(next_token: NextToken) -> Callable[[Exchange], None]:
    """A server whose model is a function from the prompt to its next-token distribution."""
    return lambda exchange: exchange.reply(200, logprob_choices(exchange.body, next_token))


def in_turn(replies: Sequence[Callable[[Exchange], None]]) -> Callable[[Exchange], None]:
    """A script that takes the replies one after another and stays at the last."""
    lock, served = threading.Lock(), []

    def script(exchange: Exchange) -> None:
        with lock:
            reply = replies[min(len(served), len(replies) - 1)]
            served.append(exchange.body)
        reply(exchange)

    return script
