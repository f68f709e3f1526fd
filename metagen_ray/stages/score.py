"""`metagen score`: lines of questions and answers in, lines of log-likelihoods out. Owns the form of both files.

Every line is read and checked before anything is computed.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metagen_ray.base_model import BaseModel
from metagen_ray.errors import InputError
from metagen_ray.prompts import Renderer
from metagen_ray.scratch import Scratch
from metagen_ray.store import open_store
from metagen_ray.tokenizer import load_tokenizer
from metagen_ray.training.likelihoods import Query, load_model, score_answers

KEY = re.compile(r"[0-9a-f]{64}")
STAGES = ("object_sft", "meta_sft")
FIELDS = ("examples", "prefix", "question", "answers")
Example = tuple[str, str]


def score_lines(base: BaseModel, path: Path, adapter: Mapping[str, bytes] | None) -> list[str]:
    """One line of JSON per line of the file, in its order.

    `log_likelihoods` (nats) sum over an answer's tokens, its end token included where a chat was rendered; `per_token`
    is their mean; `tokens` counts them.
    """
    queries = read_queries(path, Renderer(load_tokenizer(base.directory)), base.context_tokens)
    scores = score_answers(load_model(base.directory, adapter), queries)
    return [_line(query, found) for query, found in zip(queries, scores, strict=True)]


def _line(query: Query, scores: Sequence[float]) -> str:
    sizes = [len(answer) for answer in query.answers]
    per_token = [score / size for score, size in zip(scores, sizes, strict=True)]
    return json.dumps({"log_likelihoods": list(scores), "per_token": per_token, "tokens": sizes})


def read_queries(path: Path, renderer: Renderer, context_tokens: int) -> list[Query]:
    """The file's lines as tokens. InputError names the line that is wrong and says what a line is."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a file of JSON lines") from None
    rendered = _Rendered(renderer)
    queries = []
    for number, text in enumerate(lines, start=1):
        try:
            query = rendered.query(_fields(text))
            _check_length(query, context_tokens)
        except (InputError, ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        queries.append(query)
    return queries


class _Rendered:
    """Lines as tokens, equal prefixes rendered once."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._prefixes: dict[tuple[Example, ...], list[int]] = {}

    def query(self, line: Mapping[str, Any]) -> Query:
        answers: list[str] = line["answers"]
        if "prefix" in line:
            parts = self._renderer.plain(line["prefix"]), self._renderer.plain(line.get("question", ""))
            query = Query(*parts, tuple(self._renderer.plain(answer) for answer in answers))
            if not (query.prefix or query.question) or not all(query.answers):
                raise InputError("an empty answer, or nothing before the answers: there is nothing to predict")
            return query
        examples = tuple((e["question"], e["answer"]) for e in line.get("examples", ()))
        if examples not in self._prefixes:
            self._prefixes[examples] = self._renderer.examples(examples)
        prefix = self._prefixes[examples]
        question = self._renderer.branch(examples, prefix, line["question"])
        return Query(prefix, question, tuple(self._renderer.completion(answer) for answer in answers))


def _fields(text: str) -> dict[str, Any]:
    """A line as a checked mapping."""
    try:
        line = json.loads(text)
        json.dumps(line, ensure_ascii=False).encode()  # half of a surrogate pair has no bytes and no tokens
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON text ({error}); write one JSON object per line") from None
    if not isinstance(line, dict):
        raise InputError(f"a {type(line).__name__} where an object is wanted, with {', '.join(FIELDS)}")
    odd = sorted(set(line) - set(FIELDS))
    if odd:
        raise InputError(f"unknown field {odd[0]!r}; known are {', '.join(FIELDS)}")
    if "prefix" in line and "examples" in line:
        raise InputError("give examples (rendered as a chat) or prefix (plain text), not both")
    wanted = [("question", "prefix" not in line), ("prefix", False)]
    for name, required in wanted:
        if (required or name in line) and not isinstance(line.get(name), str):
            raise InputError(f"{name} must be a text")
    answers, examples = line.get("answers"), line.get("examples", [])
    if not (isinstance(answers, list) and answers and _all_texts(answers)):
        raise InputError("answers must be a list of texts, with one at least")
    if not (isinstance(examples, list) and all(_is_example(example) for example in examples)):
        raise InputError('examples must be a list of {"question": TEXT, "answer": TEXT}')
    return line


def _is_example(given: Any) -> bool:
    return isinstance(given, dict) and set(given) == {"question", "answer"} and _all_texts(given.values())


def _all_texts(given: Iterable[Any]) -> bool:
    return all(isinstance(text, str) for text in given)


def _check_length(query: Query, context_tokens: int) -> None:
    longest = len(query.prefix) + len(query.question) + max(map(len, query.answers))
    if longest > context_tokens:
        raise InputError(
            f"{longest} tokens with the longest answer, the model takes {context_tokens}; shorten the examples"
        )


def adapter_files(adapter: str, store_root: str) -> dict[str, bytes]:
    """The files of a PEFT directory, or of an adapter by its key in a store."""
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        return _files_in(folder)
    if not KEY.fullmatch(adapter):
        raise InputError(f"--adapter {adapter}: no such directory, and no key (64 hex digits) of an adapter in a store")
    store = open_store(store_root, read_only=True)
    stage = next((stage for stage in STAGES if store.has(stage, adapter)), None)
    if stage is None:
        raise InputError(f"--adapter {adapter[:12]}: no such adapter in {store_root}; `index.json` of a run lists keys")
    with Scratch("adapter") as fetched:
        store.fetch_files(stage, adapter, Path(fetched))
        return _files_in(Path(fetched))


def _files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("adapter_")}
