"""Banks: each adapter against itself alone, trained by PEFT and by our own loop; dropout; packs of other models."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GraniteConfig, LlamaConfig, Olmo2Config, Qwen2Config

from metagen_ray.errors import InputError, StageError
from metagen_ray.study import Recipe
from metagen_ray.training import base, lora
from metagen_ray.training.base import AdaptedModel, freeze, load_base
from metagen_ray.training.core import Member, Pace, TrainLog, make_batch, train, train_bank
from metagen_ray.training.dropout import drops
from metagen_ray.training.lora import Adapter, LoraShape
from metagen_ray.training.plain import PlainEngine
from metagen_ray.training.product import Banked, banked_linear
from metagen_ray.training.rows import Branch, Tree, evened, pack, plain_row
from metagen_ray.training.score import score
from tests.tiny import make_tiny_model
from tests.training.peft_alone import (
    PARITY,
    PARITY_FP64,
    largest_gap,
    peft_weights,
    relative_gap,
    stock_peft,
    train_peft,
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def random_rows(count: int, seed: int) -> list[Tree]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers([3, 1], [14, 9], size=(count, 2))
    return [plain_row(rng.integers(10, 300, p).tolist(), rng.integers(10, 300, c).tolist()) for p, c in sizes]


def random_trees(count: int, seed: int) -> list[Tree]:
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(10, 300, rng.integers(low, high)).tolist()

    return [Tree(tokens(10, 20), tuple(Branch(tokens(1, 5), tokens(1, 5)) for _ in range(4))) for _ in range(count)]


def mixed_members(count: int, dropout: float = 0.0, alike: bool = False) -> list[Member]:
    """Rates, schedules, decays, clips, batches and lengths differ from member to member, and ranks if not `alike`."""
    found = []
    for n in range(count):
        recipe = Recipe(
            rank=4 if alike else (2, 4, 3)[n % 3], alpha=8, lr=(5e-3, 1e-3)[n % 2], epochs=1 + n % 2,
            schedule=("constant", "linear", "cosine")[n % 3], warmup_share=0.2 * (n % 2), weight_decay=0.1 * (n % 3),
            batch_rows=4 + n % 3, clip=(0.05, 1.0)[n % 2], dropout=dropout * (alike or n % 2),
        )  # fmt: skip
        found.append(Member(random_rows(11 + 3 * n, n), recipe, 100 + n))
    return found


def bank_engine(model_dir: Path, members: list[Member]) -> PlainEngine:
    return PlainEngine(AdaptedModel(load_base(model_dir), [LoraShape.of(m.recipe) for m in members]))


def trained(engine: PlainEngine, members: list[Member]) -> list[tuple[Adapter, TrainLog]]:
    logs = train_bank(engine, members)
    return [(engine.adapter(slot), log) for slot, log in enumerate(logs)]


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each form of the product is used; packs are evened whatever it takes."""
    used: Counter[str] = Counter()

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: Any, pairs: Any, how: Banked, drop: Any) -> torch.Tensor:
        used["even" if how.even else "wide" if how.wide else "split"] += 1
        return banked_linear(x, weight, bias, pairs, how, drop)

    monkeypatch.setattr(lora, "banked_linear", counted)
    monkeypatch.setattr(base, "EVEN_FILL", 100.0)
    return used


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("form", ["split", "even", "wide"])
@pytest.mark.parametrize("double", [False, True], ids=["fp32", "fp64"])
def test_bank_every_adapter_equals_peft_alone(
    model_dir: Path, tmp_path: Path, forms: Counter[str], monkeypatch: pytest.MonkeyPatch,
    count: int, form: str, double: bool,
) -> None:  # fmt: skip
    if double:  # Hugging Face's norms compute in fp32 whatever they are given
        monkeypatch.setattr(base, "freeze_norms", lambda decoder: 0)
    members = mixed_members(count, alike=form == "even")
    engine = bank_engine(model_dir, members)
    engine.model.wide = form == "wide"
    engine.model.pack_tokens = 200  # several packs a step
    if double:
        engine.model.double()
    for slot, (adapter, log) in enumerate(trained(engine, members)):
        member = members[slot]
        peft = stock_peft(model_dir, engine.model.slots[slot], tmp_path / str(slot), member.seed)
        if double:
            peft.double()
        losses = train_peft(peft, list(member.trees), member.recipe, member.seed)
        assert np.allclose(log.losses, losses, atol=1e-5)
        assert relative_gap(adapter, peft_weights(peft)) < (PARITY_FP64 if double else PARITY)
        assert largest_gap(adapter, peft_weights(peft)) < (PARITY_FP64 if double else 1e-4)
    assert forms["split" if count == 1 and form == "even" else form]


@pytest.mark.parametrize("alike", [False, True], ids=["split", "even"])
def test_bank_with_dropout_equals_each_adapter_alone(model_dir: Path, forms: Counter[str], alike: bool) -> None:
    members = mixed_members(5, 0.3, alike)
    plain = [adapter for adapter, _ in trained(bank_engine(model_dir, members), members)]
    members[3] = Member(random_trees(9, 3), members[3].recipe, 5)
    together = bank_engine(model_dir, members)
    together.model.pack_tokens = 150
    for slot, (adapter, log) in enumerate(trained(together, members)):
        alone = bank_engine(model_dir, [members[slot]])
        expected = train(alone, members[slot].trees, members[slot].recipe, members[slot].seed)
        assert np.allclose(log.losses, expected.losses, atol=1e-5)
        assert relative_gap(adapter, alone.adapter()) < PARITY
    assert forms["even"] > 0 if alike else forms["even"] == 0
    dropless = mixed_members(5, 0.0, alike)
    gaps = [
        largest_gap(adapter, without)
        for adapter, (without, _) in zip(plain, trained(bank_engine(model_dir, dropless), dropless), strict=True)
    ]
    assert min(gaps[1::2]) > 1e-4  # it did drop, where it was asked to
    assert alike or max(gaps[::2]) == 0


def test_dropout_drops_its_share_afresh_in_every_step_layer_token_and_feature() -> None:
    laid = pack([*random_rows(40, 0), *random_trees(4, 1)])
    assert len(set(laid.mark_S.tolist())) < len(laid.mark_S)  # the trees are all numbered 0 here
    numbered = make_numbered(random_rows(40, 0))
    kept = drops(numbered, [7], [0.3]).scale(0, 64) > 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    assert drops(numbered, [7], [0.3]).scale(0, 64).mean().item() == pytest.approx(1.0, abs=0.02)
    others = [drops(numbered, [8], [0.3]).scale(0, 64), drops(numbered, [7], [0.3]).scale(1, 64)]
    for other in others:
        agree = ((other > 0) == kept).float().mean().item()
        assert agree == pytest.approx(0.7**2 + 0.3**2, abs=0.01)
    neighbours = (kept[1:] == kept[:-1]).float().mean().item(), (kept[:, 1:] == kept[:, :-1]).float().mean().item()
    assert neighbours == pytest.approx((0.58, 0.58), abs=0.015)


def make_numbered(trees: list[Tree]):
    return pack([Tree(t.prefix, t.branches, 0, number) for number, t in enumerate(trees)])


def even_rows(count: int) -> list[Tree]:
    """Rows of one length, which need no padding."""
    rng = np.random.default_rng(count)
    return [plain_row(rng.integers(10, 300, 6).tolist(), rng.integers(10, 300, 5).tolist()) for _ in range(count)]


@pytest.mark.parametrize(
    "trees",
    [
        [*random_rows(9, 0), *random_trees(3, 1)],
        [*even_rows(6), *random_trees(3, 1)],
        even_rows(6),
        [*even_rows(3), *random_rows(3, 0)],
        random_trees(3, 1)[:3],
    ],
    ids=["mixed", "even and trees", "even", "even and mixed", "trees"],
)
def test_bank_step_by_parts_equals_masks(model_dir: Path, trees: list[Tree]) -> None:
    spread = [Tree(t.prefix, t.branches, n % 3) for n, t in enumerate(trees)]
    found = []
    for by_parts in (True, False):
        model = AdaptedModel(load_base(model_dir), [LoraShape.of(Recipe(rank=2, alpha=4))] * 3)
        assert model.by_parts
        if not by_parts:
            model.by_parts = False
            model.base.set_attn_implementation("sdpa")  # type: ignore[operator]
        engine = PlainEngine(model)
        engine.reset([1, 2, 3], [0.0] * 3)
        with torch.no_grad():
            for flat in model.flats:
                flat += 0.05 * torch.randn(len(flat), generator=torch.Generator().manual_seed(1))
        losses = model(pack(spread))
        found.append((losses.detach(), torch.autograd.grad(losses.sum(), list(model.flats))))
    (loss, grads), (masked, masked_grads) = found
    assert torch.allclose(loss, masked, atol=1e-5)
    for ours, theirs in zip(grads, masked_grads, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def small(kind: type, **more: object):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return kind(vocab_size=320, max_position_embeddings=256, **sizes, **more)


FAMILIES = {
    "llama": small(LlamaConfig, num_key_value_heads=2),
    "qwen2": small(Qwen2Config, num_key_value_heads=2),
    "olmo2": small(Olmo2Config, num_key_value_heads=4),
    "granite": small(GraniteConfig, num_key_value_heads=1, attention_multiplier=0.2),
    "gpt-neox": small(GPTNeoXConfig),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bank_any_decoder_reads_a_pack_as_it_reads_the_rows(family: str) -> None:
    torch.manual_seed(0)
    decoder = freeze(AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="sdpa"))
    model = AdaptedModel(decoder, [LoraShape.of(Recipe(rank=2))])
    with torch.no_grad():
        model.flats[0] += 0.1 * torch.randn(len(model.flats[0]))
    trees = [*random_rows(5, 0), *random_trees(2, 1)]
    rows = [plain_row(t.prefix + b.prompt, b.completion) for t in trees for b in t.branches]
    model.pack_tokens = 1
    alone = np.concatenate(score(model, rows))
    model.pack_tokens = 10_000
    assert np.allclose(np.concatenate(score(model, trees)), alone, atol=1e-4)


def test_bank_members_with_other_targets_are_refused(model_dir: Path) -> None:
    shapes = [LoraShape.of(Recipe()), LoraShape.of(Recipe(targets=("q_proj",)))]
    with pytest.raises(InputError, match="same targets"):
        AdaptedModel(load_base(model_dir), shapes)


def test_bank_more_members_than_slots_are_refused(model_dir: Path) -> None:
    members = mixed_members(2)
    with pytest.raises(ValueError, match="2 adapters for 1 slots"):
        train_bank(bank_engine(model_dir, members[:1]), members)


def test_pack_evened_reads_the_same_and_grows_no_more_than_it_may(model_dir: Path) -> None:
    trees = [*random_rows(20, 0), *random_trees(5, 1)]
    laid = pack([replace(t, slot=(0, 2, 3)[n % 3]) for n, t in enumerate(trees)])
    even = evened(laid, 100.0)
    assert even.even and not laid.even and [slot for slot, _, _ in even.segments] == [0, 2, 3]
    growth = len(even.token_S) / len(laid.token_S) - 1
    assert evened(laid, growth - 0.01) is laid and evened(laid, growth + 0.01).even
    assert evened(even, 100.0) is even
    model = AdaptedModel(load_base(model_dir), [LoraShape.of(Recipe(rank=2, alpha=4))] * 4)
    with torch.no_grad():
        for flat in model.flats:
            flat += 0.05 * torch.randn(len(flat), generator=torch.Generator().manual_seed(1))
    found = []
    for alike, by_parts in ((False, True), (True, True), (True, False)):
        model.alike, model.by_parts = alike, by_parts
        if not by_parts:
            model.base.set_attn_implementation("sdpa")  # type: ignore[operator]
        losses = model(even if alike else laid)
        found.append((losses.detach(), torch.autograd.grad(losses.sum(), list(model.flats))))
    (expected, expected_grads), *others = found
    for losses, grads in others:
        assert torch.allclose(losses, expected, atol=1e-5)
        assert not grads[1].any() and not expected_grads[1].any()
        for ours, theirs in zip(grads, expected_grads, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("alike", [False, True], ids=["mixed", "alike"])
def test_bank_fewer_members_than_slots_train_as_ever(model_dir: Path, alike: bool) -> None:
    members = mixed_members(3, alike=alike)
    engine = bank_engine(model_dir, members)
    first = trained(engine, members)
    (again, log), *_ = trained(engine, members[:1])
    assert log.losses == pytest.approx(first[0][1].losses, abs=1e-5) and relative_gap(again, first[0][0]) < PARITY


def test_bank_gradient_that_is_not_finite_fails_the_step(model_dir: Path) -> None:
    members = mixed_members(2)
    engine = bank_engine(model_dir, members)
    engine.reset([1, 2], [0.0, 0.0])
    with torch.no_grad():
        engine.model.flats[1].fill_(float("nan"))
    trees = [Tree(t.prefix, t.branches, n % 2) for n, t in enumerate(random_rows(8, 0))]
    with pytest.raises(StageError, match="not finite"):
        engine.step(make_batch(engine, trees), [Pace(1e-3, 1.0)] * 2)
