"""The base model of a study: where its files lie and what they are. Owns the directory's checks; loads no weights.

`lab:NAME` is a base shipped with the package; anything else is a local directory in the Hugging Face layout.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from metagen_ray.errors import InputError

WEIGHTS = Path(str(resources.files("metagen_ray.lab"))) / "weights"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class BaseModel:
    """A model directory that was found fit. `context_tokens` is the longest sequence it takes."""

    directory: Path
    name: str
    context_tokens: int

    @cached_property
    def digest(self) -> str:
        """sha256 over configuration, tokenizer and weights."""
        digest = hashlib.sha256()
        for path in sorted(self.directory.iterdir()):
            if path.name in ("config.json", *TOKENIZER_FILES) or path.suffix == ".safetensors":
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 over the tokenizer's files: what decides how text becomes tokens."""
        digest = hashlib.sha256()
        for name in TOKENIZER_FILES:
            path = self.directory / name
            if path.exists():
                digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()


def find_base(model: str) -> BaseModel:
    """Check a model's directory. InputError says what is missing and what to do."""
    directory, name = _directory(model)
    config = _config(directory, model)
    if not list(directory.glob("*.safetensors")):
        raise InputError(f"model {model}: no .safetensors file in its directory; convert the weights to safetensors")
    if not (directory / "tokenizer.json").exists():
        raise InputError(f"model {model}: no tokenizer.json in its directory; save the fast tokenizer there")
    context = config.get("max_position_embeddings")
    if not isinstance(context, int):
        raise InputError(
            f"model {model}: config.json names no max_position_embeddings; is it a decoder language model?"
        )
    return BaseModel(directory, name, context)


def _directory(model: str) -> tuple[Path, str]:
    if model.startswith("lab:"):
        name = model.removeprefix("lab:")
        shipped = sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()) if WEIGHTS.is_dir() else []
        if name not in shipped:
            raise InputError(f"model {model}: no such lab base; shipped are {', '.join('lab:' + s for s in shipped)}")
        return WEIGHTS / name, f"lab-{name}"
    directory = Path(model).expanduser()
    if not directory.is_dir():
        raise InputError(f"model {model}: no such directory; give `lab:NAME` or a local model directory")
    return directory.resolve(), "base"


def _config(directory: Path, model: str) -> dict:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"model {model}: no config.json in its directory; is it a Hugging Face model?") from None
    except (ValueError, RecursionError):
        raise InputError(f"model {model}: config.json is not valid JSON; download the model again") from None
    if not isinstance(config, dict):
        raise InputError(f"model {model}: config.json is not an object; download the model again")
    architectures = config.get("architectures") or []
    if not any(str(a).endswith("ForCausalLM") for a in architectures):
        raise InputError(f"model {model}: architectures {architectures} is no decoder language model (…ForCausalLM)")
    return config
