"""Packs of trees against the expanded rows, one by one: losses, gradients, scores; who may share a prefix."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3NextConfig

from metagen_ray.errors import InputError
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel, freeze, load_base
from metagen_ray.training.core import Pace, deal, make_batch
from metagen_ray.training.lora import LoraShape
from metagen_ray.training.plain import PlainEngine
from metagen_ray.training.product import Banked
from metagen_ray.training.rows import Branch, Tree, pack, plain_row, split_by_size, step_batches
from metagen_ray.training.score import mean_loss, score
from tests.tiny import make_tiny_model

SHAPE = LoraShape.of(Recipe(rank=4, alpha=8))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def tokens(rng: np.random.Generator, low: int, high: int) -> list[int]:
    return rng.integers(10, 300, rng.integers(low, high)).tolist()


def random_trees(seed: int = 0) -> list[Tree]:
    """Trees with a prefix, two answers to some questions and an empty question; plain rows; a single continuation."""
    rng = np.random.default_rng(seed)
    trees = []
    for _ in range(3):
        questions = [tokens(rng, 1, 8) for _ in range(4)]
        asked = [Branch(q, tokens(rng, 1, 6)) for q in questions for _ in range(2)]
        trees.append(Tree(tokens(rng, 20, 40), (*asked, Branch([], tokens(rng, 2, 5)))))
    trees += [plain_row(tokens(rng, 2, 9), tokens(rng, 1, 9)) for _ in range(5)]
    return [*trees, Tree(tokens(rng, 5, 9), (Branch(tokens(rng, 2, 5), tokens(rng, 2, 5)),))]


def warm_model(model_dir: Path, checkpointing: bool = False) -> AdaptedModel:
    """A model whose adapter does something: B is not zero."""
    model = AdaptedModel(freeze(load_base(model_dir), checkpointing), [SHAPE])
    with torch.no_grad():
        model.flats[0].copy_(torch.randn(model.flats[0].numel(), generator=torch.Generator().manual_seed(1)) * 0.1)
    return model


def row_losses(model: AdaptedModel, tree: Tree) -> Iterator[torch.Tensor]:
    """-log p of each branch's completion by an ordinary forward of prefix + prompt + completion."""
    for branch in tree.branches:
        context = tree.prefix + branch.prompt
        ids = torch.tensor([context + branch.completion])
        model.bank.lend(list(model.flats), torch.float32, Banked([(0, 0, ids.numel())], [2.0], False))
        logits = model.base(ids).logits[0, len(context) - 1 : -1]
        yield F.cross_entropy(logits, torch.tensor(branch.completion), reduction="sum")


def relative_gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_pack_of_trees_gradient_equals_expanded_rows(model_dir: Path, checkpointing: bool) -> None:
    trees = random_trees()
    model = warm_model(model_dir, checkpointing)
    loss = model(pack(trees)).sum()
    (ours,) = torch.autograd.grad(loss, model.flats[0])
    theirs, rows = torch.zeros_like(ours), 0.0
    for row in (row for tree in trees for row in row_losses(model, tree)):
        theirs += torch.autograd.grad(row, model.flats[0])[0]
        rows += row.item()
    assert loss.item() == pytest.approx(rows, rel=1e-6)
    assert relative_gap(ours, theirs) < 1e-5


@pytest.mark.parametrize("limit", [1, 60, 10_000])
def test_engine_step_any_pack_size_gives_the_same_update(model_dir: Path, limit: int) -> None:
    adapters = []
    for size in (limit, 300):
        model = warm_model(model_dir)
        model.pack_tokens = size
        engine = PlainEngine(model)
        engine.step(make_batch(engine, random_trees()), [Pace(1e-2, 0.5)])
        adapters.append(model.flats[0].detach())
    # Adam's first step is close to lr * sign(g): a gradient near 0 may flip, so the mean counts.
    assert (adapters[0] - adapters[1]).abs().mean() < 1e-6


def test_score_bulk_equals_one_by_one(model_dir: Path) -> None:
    trees = random_trees()
    model = warm_model(model_dir)
    with torch.no_grad():
        expected = [[-loss.item() for loss in row_losses(model, tree)] for tree in trees]
    scores = score(model, [*trees, trees[0]])
    assert [len(s) for s in scores[:-1]] == [len(e) for e in expected]
    assert np.allclose(np.concatenate(scores[:-1]), np.concatenate(expected), atol=1e-4)
    assert scores[-1] == scores[0]
    tokens_in_all = sum(t.completion_tokens() for t in trees)
    assert mean_loss(model, trees) == pytest.approx(-np.concatenate(expected).sum() / tokens_in_all, abs=1e-5)


def test_pack_reads_shared_prompts_once_and_no_last_token() -> None:
    tree = Tree([1, 2, 3], (Branch([4, 5], [6, 7]), Branch([4, 5], [8]), Branch([9], [6, 7])))
    laid = pack([tree])
    assert laid.token_S.tolist() == [1, 2, 3, 4, 5, 6, 9, 6]
    assert laid.position_S.tolist() == [0, 1, 2, 3, 4, 5, 3, 4]
    assert laid.label_C.tolist() == [6, 7, 8, 6, 7]
    assert laid.source_C.tolist() == [4, 5, 4, 6, 7]
    assert laid.branch_C.tolist() == [0, 0, 1, 2, 2]
    assert len(laid.token_S) == tree.read_tokens()


def test_pack_completion_without_context_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing before it"):
        pack([plain_row([], [5])])
    with pytest.raises(ValueError, match="empty completion"):
        pack([plain_row([5], [])])


def test_split_by_size_keeps_every_tree_and_the_limit() -> None:
    trees = random_trees()
    groups = split_by_size(trees, 50)
    assert sorted(id(t) for g in groups for t in g) == sorted(map(id, trees))
    assert all(len(g) == 1 or sum(t.read_tokens() for t in g) <= 50 for g in groups)


def test_split_by_size_reads_few_adapters_in_a_pack() -> None:
    trees = [replace(tree, slot=n % 3) for n, tree in enumerate([plain_row([5] * 9, [6] * 2)] * 30)]
    groups = split_by_size(trees, 100)  # ten trees fill a pack, and an adapter has ten
    assert [{t.slot for t in g} for g in groups] == [{0}, {1}, {2}]


def test_step_batches_count_completions_and_keep_the_rest() -> None:
    trees = random_trees()  # 9 + 9 + 9 completions, then 6 plain rows
    steps = list(step_batches(trees, range(len(trees)), 10))
    assert [len(s) for s in steps] == [2, 2, 5]
    assert [t for s in steps for t in s] == trees


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_deal_any_world_gives_every_branch_to_one_rank(world: int) -> None:
    trees = random_trees()[:2]
    shares = deal(trees, world)
    assert len(shares) == world and all(shares[: min(world, 18)])
    dealt = sorted((t.prefix, b.prompt, b.completion) for share in shares for t in share for b in t.branches)
    assert dealt == sorted((t.prefix, b.prompt, b.completion) for t in trees for b in t.branches)


def odd_models() -> Sequence[tuple[object, str]]:
    small = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    sliding = Qwen3Config(
        **small,
        num_key_value_heads=2,
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    )
    gemma = Gemma3TextConfig(
        **small,
        num_key_value_heads=1,
        num_hidden_layers=3,
        sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    linear = Qwen3NextConfig(
        **small,
        num_key_value_heads=2,
        num_hidden_layers=2,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"],
    )
    return [
        (sliding, "layers 1, 2 are sliding_attention"),
        (gemma, "layers 0, 1 are sliding_attention"),
        (linear, "layers 0 are linear_attention"),
    ]


@pytest.mark.parametrize(("config", "named"), odd_models(), ids=["qwen3-sliding", "gemma3", "qwen3-next"])
def test_model_without_full_attention_refuses_shared_prefixes_by_name(config: object, named: str) -> None:
    torch.manual_seed(0)
    model = AdaptedModel(freeze(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")), [SHAPE])
    with pytest.raises(InputError, match=named):
        score(model, random_trees())


def test_model_with_sliding_layers_trains_plain_rows_exactly() -> None:
    torch.manual_seed(0)
    config, _ = odd_models()[0]
    model = AdaptedModel(freeze(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")), [SHAPE])
    rows = [t for t in random_trees() if len(t.branches) == 1]
    with torch.no_grad():
        expected = [-loss.item() for tree in rows for loss in row_losses(model, tree)]
    assert np.allclose(np.concatenate(score(model, rows)), expected, atol=1e-4)
