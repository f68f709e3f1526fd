"""Row 4: meta-SFT on trees that read their prefix once, against TRL on the expanded rows; cost by questions a prefix.

A tree is K = 8 examples, then 8 questions with 2 answers each: two cells of 4 questions. Steps are the study's, of 64
completions. TRL takes a step in parts, as large as is fastest here, padded in the order of the rows or sorted by length
inside each step, which changes no gradient; the faster one counts.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks import workload
from benchmarks.apart import Apart
from benchmarks.bases import GPU_SIZES, Base, make_base
from benchmarks.curves import Curve, write_curve
from benchmarks.measure import Options, Row, compared, interleave, rates, timed
from benchmarks.ours import Ours, gradient
from benchmarks.peak import decoder_of, memory_gib, peak_rate, reads_of, share, training_flops
from benchmarks.peers import PeftLoop, Rounds, Way, largest_gap
from metagen_ray.study import META_RECIPE
from metagen_ray.training.rows import Tree

QUESTIONS_A_CELL = 4
STEPS = {"1M": 8, "10M": 1}  # optimizer steps a round: the slow side stays under half a minute
TREES_A_STEP = 4  # 64 completions
MICRO_ROWS = (8, 16, 64)
RECIPE = META_RECIPE.model_copy(update={"epochs": 1})
CURVE_QUESTIONS = (1, 2, 4, 8, 12, 16, 20)
CURVE_BRANCHES = 320  # completions that are trained on for each point


def rows(options: Options) -> list[Row]:
    """The comparison at every size; draws the curve."""
    found, points = [], []
    with tempfile.TemporaryDirectory(prefix="metagen-bench-") as folder:
        for size in options.sizes:
            base = make_base(size, Path(folder))
            found.append(_compare(base, options))
            if not options.quick:
                points += _curve(base)
    if points:
        columns = ("size", "questions_a_prefix", "ms_a_completion", "low", "high")
        title = "Meta-SFT: time of a completion by questions under one prefix"
        write_curve(Curve(f"meta-{'-'.join(options.sizes)}", title, columns, points))
    return found


def _compare(base: Base, options: Options) -> Row:
    steps = 1 if options.quick else STEPS.get(base.size, 1)
    trees = workload.meta_trees(base, steps * TREES_A_STEP)
    expanded = workload.expanded(trees)
    ours = Ours(base, RECIPE, 1)
    train = partial(ours.train, [(trees, 0)])
    memory, start = memory_gib(train), ours.start(0)
    with Apart(Rounds, base, RECIPE) as peer:
        way = peer.call("choose", _ways(base), expanded[: RECIPE.batch_rows], start)
        peer.call("load", way, [expanded], [start])
        seconds = interleave({"ours": train, "peer": partial(peer.call, "run")}, options.rounds)
        name = peer.call("name")
    cells = len(expanded) / (QUESTIONS_A_CELL * workload.ANSWERS)
    reads = reads_of(trees)
    flops = training_flops(decoder_of(base), reads, RECIPE.rank)
    return compared(
        4,
        base.size,
        "meta-SFT on shared prefixes, 8 questions x 2 answers each",
        f"{name} on the expanded rows",
        "cells/s",
        rates(seconds["ours"], cells),
        rates(seconds["peer"], cells),
        parity=gradient_gap(base, trees[:TREES_A_STEP]),
        parity_of="largest difference of a step's gradient from stock PEFT's, over its largest entry",
        peak_share=share(flops, seconds["ours"], peak_rate(base, reads_of(trees[:TREES_A_STEP]))),
        aim=5.0,
        setting=str(way),
        tokens_per_s=statistics.median(rates(seconds["ours"], reads.tokens)),
        tokens_spared=sum(row.read_tokens() for row in expanded) / reads.tokens,
        engine=ours.engine_name,
        memory_gib=memory,
    )


def _ways(base: Base) -> list[Way]:
    """On a GPU a whole step of long rows has no room beside a head of 150,000 words."""
    sizes = MICRO_ROWS[:1] if base.size in GPU_SIZES else MICRO_ROWS
    return [Way(size, sorted_steps=by_length) for size in sizes for by_length in (False, True)]


def gradient_gap(base: Base, trees: list[Tree]) -> float:
    """Largest difference of our gradient of a step from stock PEFT's on the expanded rows, over its largest entry."""
    theirs = PeftLoop(base, RECIPE)
    generator = torch.Generator().manual_seed(0)  # B starts at zero, where the gradient of A would be zero too
    start = {name: torch.empty(w.shape).normal_(0, 0.02, generator=generator) for name, w in theirs.adapter().items()}
    theirs.load(start)
    theirs.backward(theirs.prepare(workload.expanded(trees), Way(MICRO_ROWS[0]))[0])
    expected, found = theirs.gradients(), gradient(base, RECIPE, trees, start)
    return largest_gap(found, expected) / max(g.abs().max().item() for g in expected.values())


def _curve(base: Base) -> list[tuple[str, float, float, float, float]]:
    """Milliseconds a completion for every number of questions, each with one answer."""
    ours, points = Ours(base, RECIPE, 1), []
    for questions in CURVE_QUESTIONS:
        trees = workload.meta_trees(base, CURVE_BRANCHES // questions, questions, answers=1)
        train = partial(ours.train, [(trees, 0)])
        train()
        ms = [1000 * timed(train) / sum(len(t.branches) for t in trees) for _ in range(3)]
        points.append((base.size, questions, statistics.median(ms), min(ms), max(ms)))
    return points
