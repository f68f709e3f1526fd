"""Both sides of a measurement read the same tokens, and what is counted is what is read."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import workload
from benchmarks.apart import Apart
from benchmarks.bases import Base, make_base, random_qwen3
from benchmarks.meta_trl import gradient_gap
from benchmarks.ours import Ours
from benchmarks.peak import decoder_of, forward_flops, pack_products, product_rate, reads_of, training_flops
from benchmarks.peers import IGNORED, PeftLoop, Rounds, Trl, Way, laid, largest_gap, padded, relative_gap
from metagen_ray.cost.work import Reads
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.lora import LoraShape
from metagen_ray.training.rows import Branch, Tree, pack, plain_row
from metagen_ray.training.score import score


@cache
def base() -> Base:
    return make_base("1M", Path())  # the shipped one: nothing is written


def read_back(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) of every row of a padded batch."""
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        size = int(mask.sum())
        trained = (labels[:size] != IGNORED).tolist()
        start = trained.index(True)
        assert all(trained[start:])
        assert torch.equal(ids[:size][start:], labels[:size][start:])
        found.append((ids[:start].tolist(), ids[start:size].tolist()))
    return found


def test_padded_rows_are_our_rows() -> None:
    (rows,) = workload.fine_tunes(base(), 1, rows=8)
    assert read_back(padded(rows)) == [(r.branches[0].prompt, r.branches[0].completion) for r in rows]


def test_expanded_rows_say_what_the_trees_say() -> None:
    trees = workload.meta_trees(base(), 2)
    expected = [([*tree.prefix, *b.prompt], b.completion) for tree in trees for b in tree.branches]
    assert read_back(padded(workload.expanded(trees))) == expected
    assert all(len(tree.branches) == 16 for tree in trees)


def test_trl_reads_our_rows() -> None:
    (rows,) = workload.fine_tunes(base(), 1, rows=8)
    peer = Trl(base(), Recipe())
    found = peer.prepare(rows, Way(8))
    for row, ours in zip(found, rows, strict=True):
        (branch,) = ours.branches
        assert row["input_ids"] == branch.prompt + branch.completion
        assert row["labels"] == [IGNORED] * len(branch.prompt) + branch.completion


def test_laid_is_the_order_of_our_loop() -> None:
    rows = [plain_row([n], [n]) for n in range(16)]
    recipe = Recipe(epochs=2, batch_rows=8)
    found = [row.branches[0].prompt[0] for row in laid(rows, recipe, seed=3)]
    assert found == [n for e in range(2) for n in np.random.default_rng([3, e]).permutation(16)]
    with pytest.raises(ValueError, match="do not fill"):
        laid(rows[:9], recipe, seed=3)


def test_sorting_inside_steps_keeps_the_steps() -> None:
    rows = [plain_row([1] * (1 + 7 * n % 11), [2]) for n in range(32)]
    found = Way(4, sorted_steps=True).laid(rows, batch_rows=8)
    assert found != rows
    for start in range(0, 32, 8):
        lengths = [row.read_tokens() for row in found[start : start + 8]]
        assert lengths == sorted(row.read_tokens() for row in rows[start : start + 8])


def test_reads_of_trees_are_those_of_their_pack() -> None:
    trees = [
        *workload.meta_trees(base(), 1),
        plain_row([1, 2, 3], [4, 5]),
        Tree([1, 2], (Branch([3], [4, 5, 6]), Branch([3], [7]), Branch([8, 9], [1]))),
    ]
    laid_out, reads = pack(trees), reads_of(trees)
    assert reads.tokens == len(laid_out.token_S)
    assert reads.logits == len(laid_out.label_C)
    assert reads.pairs == int(laid_out.visible_SS().sum())


def test_shared_tokens_count_once() -> None:
    prompts = [[1, 2, 3], [1, 2, 4], [1, 2, 4], [5], [1, 2]]
    assert workload.shared_tokens_once(prompts) == 5


def test_products_of_a_pack_are_its_forward() -> None:
    decoder, reads = decoder_of(base()), Reads(tokens=7, logits=3)
    products = pack_products(decoder, reads)
    assert forward_flops(decoder, reads) == sum(2 * m * k * n for m, k, n in products)
    assert 0.9e6 < sum(k * n for _, k, n in products) < 1.1e6


def test_operations_of_a_training_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    # One row without padding, so that stock PEFT does nothing that is not needed.
    (row, *_), recipe = workload.fine_tunes(base(), 1, rows=1)[0], Recipe(rank=4)
    peer = PeftLoop(base(), recipe)
    with FlopCounterMode(display=False) as counter:
        peer.backward(peer.prepare([row], Way(1))[0])
    expected = training_flops(decoder_of(base()), reads_of([row]), recipe.rank)
    # The peer also reads the last token, and its attention is counted whole rather than below the diagonal.
    assert expected < counter.get_total_flops() < 1.2 * expected


def test_product_rate_is_that_of_a_machine() -> None:
    assert 1e8 < product_rate([(64, 128, 128)], torch.float32, "cpu") < 1e15


def test_larger_base_has_ten_million_parameters(tmp_path: Path) -> None:
    model = make_base("10M", tmp_path).load()
    assert 9e6 < sum(p.numel() for p in model.parameters()) < 12e6


@pytest.mark.parametrize(("size", "billions"), [("0.6B", 0.596), ("4B", 4.022)])
def test_gpu_sizes_have_the_public_shapes(size: str, billions: float) -> None:
    model = random_qwen3(size, "meta")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(billions * 1e9, rel=1e-3)


def test_rows_of_gpu_sizes_are_as_long_as_real_advice(tmp_path: Path) -> None:
    gpu = make_base("0.6B", tmp_path)
    (first, second), (tree,) = workload.fine_tunes(gpu, 2, rows=4), workload.meta_trees(gpu, 1)
    assert first != second
    assert all(120 <= row.read_tokens() + 1 <= 310 for row in first)
    assert len(tree.branches) == 16 and 8 * 120 <= len(tree.prefix) <= 8 * 310
    assert decoder_of(gpu).layers == 28


def test_gaps_of_adapters_are_those_of_their_numbers() -> None:
    ours = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[0.0]])}
    theirs = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([[0.25]])}
    assert largest_gap(ours, theirs) == 0.5
    assert relative_gap(theirs, ours) == pytest.approx((0.25 + 0.0625) ** 0.5 / 5)
    with pytest.raises(ValueError, match="differ in b"):
        relative_gap(ours, {"a": ours["a"]})


@pytest.mark.slow
def test_peers_train_what_ours_trains() -> None:
    recipe = Recipe(epochs=1)
    (rows,) = workload.fine_tunes(base(), 1, rows=32)
    ours = Ours(base(), recipe, 2)
    ours.train([(rows, 0), (rows, 1)])
    order, start = laid(rows, recipe, seed=1), ours.start(1)
    with Apart(Rounds, base(), recipe) as peer:
        for way in (Way(8), Way(4, sorted_steps=True), Way(8, padding_free=True)):
            peer.call("load", way, [order], [start])
            peer.call("run")
            (theirs,) = peer.call("adapters")
            # On a trained base many gradients are near Adam's eps; the two peers are as far from each other.
            assert relative_gap(ours.adapters[1], theirs) < 1e-4
        assert peer.call("control", [order], [start]) < 1e-4


def test_gradient_of_shared_prefixes_is_that_of_stock_peft() -> None:
    assert gradient_gap(base(), workload.meta_trees(base(), 1, questions=3)) < 1e-5


def test_scores_of_a_peer_are_ours() -> None:
    trees = workload.meta_trees(base(), 1, questions=3)
    model = AdaptedModel(base().load(), [LoraShape.of(Recipe())])
    ours = [value for branches in score(model, trees) for value in branches]
    theirs = PeftLoop(base(), Recipe()).score(workload.expanded(trees), micro_rows=4)
    assert np.allclose(ours, theirs, atol=1e-4)
