"""Log-likelihoods of answers to questions after a prefix, in bulk. Owns what is read once; knows no text and no store.

A prefix is read once for all its questions, a question once for all its answers. Prefixes with few questions are packed
together (rows.py); one with many is kept as keys and values that its questions attend to, pack after pack. Rows are
laid end to end, so their lengths cost nothing but themselves.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from metagen_ray.errors import InputError
from metagen_ray.training.base import AdaptedModel, load_base
from metagen_ray.training.lora import CONFIG, WEIGHTS, LoraShape, read_adapter
from metagen_ray.training.rows import Branch, Pack, Tree, pack, split_by_size
from metagen_ray.training.score import score

Tokens = list[int]
Row = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # prefix, question, answer
PLAIN = {"use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "bias": "none"}  # what LoraLinear computes
TREE_SHARE = 4  # of a pack: what a prefix and its questions may take as one tree, whose mask grows with their square
AFTER_SHARE = 8  # of a pack: what is read at once after a kept prefix, for the same reason
EMPTY = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "trainable_token_indices")


@dataclass(frozen=True, slots=True)
class Query:
    """A question after a prefix, and the answers to score; each answer has at least one token before it."""

    prefix: Tokens
    question: Tokens
    answers: tuple[Tokens, ...]

    def rows(self) -> list[Row]:
        """One (prefix, question, answer) per answer."""
        return [(tuple(self.prefix), tuple(self.question), tuple(answer)) for answer in self.answers]


def score_answers(model: AdaptedModel, queries: Sequence[Query]) -> list[list[float]]:
    """The log-likelihood in nats of every answer, in the order of the queries and their answers.

    Equal rows are read once. ValueError for an answer without tokens or with nothing before it.
    """
    questions: dict[tuple[int, ...], dict[tuple[int, ...], dict[tuple[int, ...], None]]] = {}
    for prefix, question, answer in (row for query in queries for row in query.rows()):
        questions.setdefault(prefix, {}).setdefault(question, {})[answer] = None
    trees: dict[tuple[int, ...], list[Tree]] = {
        prefix: [Tree([], tuple(Branch([*question], [*a]) for a in answers)) for question, answers in asked.items()]
        for prefix, asked in questions.items()
    }
    found: dict[Row, float] = {}
    packed: list[Tree] = []
    for prefix, alone in trees.items():
        size = len(prefix) + sum(map(Tree.read_tokens, alone))
        if prefix and not model.not_full and size > model.pack_tokens // TREE_SHARE:
            found |= _after_prefix(model, prefix, alone)
        else:
            packed += _with_prefix(model, prefix, alone)
    for tree, scores in zip(packed, score(model, packed), strict=True):
        found |= _by_row(tuple(tree.prefix), tree, scores)
    return [[found[row] for row in query.rows()] for query in queries]


def _with_prefix(model: AdaptedModel, prefix: tuple[int, ...], alone: list[Tree]) -> list[Tree]:
    """Trees as `score` takes them: one a prefix, one a question without, one a row where layers cannot share."""
    branches = [branch for tree in alone for branch in tree.branches]
    if model.not_full:
        return [Tree([*prefix], (branch,)) for branch in branches]
    return [Tree([*prefix], tuple(branches))] if prefix else alone


def _by_row(prefix: tuple[int, ...], tree: Tree, scores: Sequence[float]) -> dict[Row, float]:
    rows = [(prefix, tuple(branch.prompt), tuple(branch.completion)) for branch in tree.branches]
    return dict(zip(rows, scores, strict=True))


def _after_prefix(model: AdaptedModel, prefix: tuple[int, ...], alone: list[Tree]) -> dict[Row, float]:
    """Scores of a prefix's questions, pack by pack after its keys and values.

    Its last token is read with each question: an answer right after the prefix is predicted from there.
    """
    from transformers import DynamicCache

    *seen, last = prefix
    found: dict[Row, float] = {}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        cache = DynamicCache(config=model.base.config)  # type: ignore[arg-type]
        if seen:
            _read(model, cache, pack([Tree([], (Branch(seen, [last]),))]).to(model.device), logits_to_keep=1)
        for group in split_by_size(alone, model.pack_tokens // AFTER_SHARE):
            laid = pack([_led_by(last, tree) for tree in group]).to(model.device)
            summed = iter(_branch_sums(_losses(model, cache, len(seen), laid), laid))
            for tree in group:
                found |= _by_row(prefix, tree, [next(summed) for _ in tree.branches])
    model.train(was_training)
    return found


def _led_by(token: int, tree: Tree) -> Tree:
    return Tree([], tuple(Branch([token, *branch.prompt], branch.completion) for branch in tree.branches))


def _losses(model: AdaptedModel, cache: Any, seen: int, laid: Pack) -> torch.Tensor:
    """-log p of the pack's completion tokens, C of them, after `seen` tokens whose keys and values lie in the cache."""
    before_SP = torch.ones(len(laid.token_S), seen, dtype=torch.bool, device=model.device)
    mask_SR = torch.cat([before_SP, laid.visible_SS()], dim=1)  # R: what can be read, the prefix and the pack
    logits_CV = _read(
        model,
        cache,
        laid,
        position_ids=laid.position_S[None] + seen,
        attention_mask=mask_SR[None, None],
        logits_to_keep=laid.source_C,
    )
    cache.crop(-len(laid.token_S))
    return F.cross_entropy(logits_CV.float(), laid.label_C, reduction="none")


def _branch_sums(loss_C: torch.Tensor, laid: Pack) -> list[float]:
    branches = int(laid.branch_C[-1]) + 1
    sums = torch.zeros(branches, dtype=torch.float64)
    return (-sums.index_add_(0, laid.branch_C.cpu(), loss_C.double().cpu())).tolist()


def _read(model: AdaptedModel, cache: Any, laid: Pack, **inputs: Any) -> torch.Tensor:
    """Logits of one sequence, its keys and values appended to the cache."""
    model.lend(laid, ())
    return model.base(input_ids=laid.token_S[None], past_key_values=cache, use_cache=True, **inputs).logits[0]


def load_model(directory: str | Path, adapter: Mapping[str, bytes] | None = None) -> AdaptedModel:
    """A base, on the GPU where there is one, with the adapter of these files (PEFT's format), if any.

    InputError where the adapter is none that this package computes, or was made for another base.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return with_adapter(load_base(directory, device), adapter, device)


def with_adapter(base: nn.Module, files: Mapping[str, bytes] | None, device: torch.device | str) -> AdaptedModel:
    """A loaded base with one adapter; without files its layers stay as they are."""
    if files is None:
        return AdaptedModel(base, [LoraShape(1, 1.0, 0.0, ())], device).eval()
    tensors = _tensors(files)
    model = AdaptedModel(base, [_shape(files, tensors)], device)
    with torch.no_grad():
        model.flats[0].copy_(model.slots[0].flat(tensors))
    return model.eval()


def _tensors(files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    if WEIGHTS not in files:
        raise InputError(f"the adapter has no {WEIGHTS}; save it with PEFT's save_pretrained as safetensors")
    try:
        return read_adapter(files)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"the adapter's {WEIGHTS} cannot be read ({error}); copy it again") from None


def _shape(files: Mapping[str, bytes], tensors: Mapping[str, Any]) -> LoraShape:
    """What an adapter_config.json and its tensors ask for."""
    try:
        config = json.loads(files[CONFIG])
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (KeyError, ValueError, TypeError, RecursionError):
        raise InputError(f"the adapter has no {CONFIG} of a LoRA adapter; give a directory that PEFT wrote") from None
    odd = [name for name, plain in PLAIN.items() if config.get(name, plain) != plain]
    odd += [name for name in EMPTY if config.get(name)]
    if config.get("peft_type") != "LORA" or odd:
        raise InputError(
            f"the adapter is no plain LoRA ({', '.join(odd) or config.get('peft_type')}); merge it instead"
        )
    modules = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in tensors}
    return LoraShape(rank, alpha, 0.0, tuple(sorted(modules)))
