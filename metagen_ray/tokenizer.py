"""A model directory's tokenizer, without transformers where that changes nothing. Owns the choice; knows no prompts.

Importing transformers costs seconds of CPU and torch with it, in every process that turns text into tokens. Where a
directory's files say only what this module reads as transformers does, `tokenizers` and jinja2 do the same; anything
else in them is left to transformers.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

MODEL_TYPES = ("qwen3", "llama")  # for some others transformers takes a class of its own whatever the files name
CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")  # these read tokenizer.json as it stands
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
READ_HERE = {*NAMED, "chat_template", "extra_special_tokens", "tokenizer_class"}
WITHOUT_EFFECT = {  # on BPE without added special tokens, padding or truncation
    "add_bos_token", "add_eos_token", "backend", "clean_up_tokenization_spaces", "is_local", "local_files_only",
    "model_input_names", "model_max_length", "padding_side", "truncation_side",
}  # fmt: skip
OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "additional_chat_templates")
GLOBALS = {"raise_exception", "strftime_now", "dict", "namespace"}  # what transformers brings into a template


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a checked model directory; no code of the directory is run."""
    plain = plain_tokenizer(directory)
    if plain is not None:
        return plain
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


class PlainTokenizer:
    """What this package asks of a tokenizer, with transformers' names and its ids."""

    def __init__(self, backend: Any, named: Mapping[str, str], chat_template: str) -> None:
        self._backend = backend
        self._named = dict(named)
        self.chat_template = chat_template
        self.all_special_tokens = list(dict.fromkeys(named.values()))
        self.eos_token_id: int = backend.token_to_id(named["eos_token"])

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Added tokens by id."""
        return self._backend.get_added_tokens_decoder()

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        assert not add_special_tokens, "special tokens come from the chat template"
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of token ids."""
        return self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, tokenize: bool, return_dict: bool
    ) -> list[int]:
        """Token ids of a conversation."""
        assert tokenize and not return_dict, "ids are all that is rendered"
        text = self._template.render(
            messages=list(messages),
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._named,
        )
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def _template(self) -> Any:
        return _environment().from_string(self.chat_template)


def plain_tokenizer(directory: Path) -> PlainTokenizer | None:
    """The tokenizer read without transformers; None where its files ask for more than that."""
    config, settings, whole = (
        _json(directory / name) for name in ("config.json", "tokenizer_config.json", "tokenizer.json")
    )
    if not (config and settings and whole) or any((directory / name).exists() for name in OTHER_FILES):
        return None
    template = _template_of(directory, settings)
    named = {name: settings[name] for name in NAMED if settings.get(name)}
    extra = settings.get("extra_special_tokens") or []
    known = (
        config.get("model_type") in MODEL_TYPES
        and settings.get("tokenizer_class") in CLASSES
        and set(settings) <= READ_HERE | WITHOUT_EFFECT
        and _is_plain_bpe(whole)
        and "eos_token" in named
        and isinstance(extra, list)
        and _stand_added([*named.values(), *extra], whole)
    )
    if not known or template is None or not _is_plain_template(template):
        return None
    from tokenizers import Tokenizer

    return PlainTokenizer(Tokenizer.from_file(str(directory / "tokenizer.json")), named, template)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _template_of(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The one chat template; a file of its own comes before the settings' entry."""
    path = directory / "chat_template.jinja"
    found = path.read_text(encoding="utf-8") if path.exists() else settings.get("chat_template")
    return found if isinstance(found, str) else None


def _is_plain_bpe(whole: Mapping[str, Any]) -> bool:
    """Other models are decoded with a clean-up of blanks; padding and truncation change what tokens there are."""
    model = whole.get("model") or {}
    return model.get("type") == "BPE" and not whole.get("padding") and not whole.get("truncation")


def _stand_added(tokens: Sequence[Any], whole: Mapping[str, Any]) -> bool:
    """Whether all stand in tokenizer.json as plain special tokens; transformers would add them otherwise."""
    odd = ("normalized", "lstrip", "rstrip", "single_word")
    plain = {
        token["content"]
        for token in whole.get("added_tokens") or ()
        if token["special"] and not any(token[o] for o in odd)
    }
    return all(isinstance(token, str) and token in plain for token in tokens)


def _is_plain_template(template: str) -> bool:
    """Whether jinja2 alone renders it as transformers does, which brings a few functions, a filter and a tag."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = _environment().parse(template)
    except TemplateSyntaxError:
        return False
    filters, names = ({node.name for node in tree.find_all(kind)} for kind in (nodes.Filter, nodes.Name))
    return "tojson" not in filters and not names & GLOBALS


def _environment() -> Any:
    """The sandbox, with transformers' settings."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
