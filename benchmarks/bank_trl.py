"""Row 1: sixteen fine-tunes as one bank, against TRL's SFTTrainer with PEFT one after another, and a process for each.

The fine-tunes are those of the pocket study: the training sets of its first sixteen domains under its recipe, with
fewer epochs at the larger sizes. TRL gets its fastest setting here: padded, padding-free or grouped by length. It
starts from our weights and sees our rows in our order, except where it groups by length. `parity_of_peers` is how far
TRL and a plain PEFT loop are apart on the same rows. Where TRL is missing (a bare GPU machine), that loop is the peer.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import workload
from benchmarks.alone import run_alone, write_jobs
from benchmarks.apart import Apart
from benchmarks.bases import GPU_SIZES, Base, make_base
from benchmarks.measure import Options, Row, compared, interleave, rates
from benchmarks.ours import Job, Ours
from benchmarks.peak import decoder_of, memory_gib, peak_rate, reads_of, share, training_flops
from benchmarks.peers import Rounds, Way, laid, relative_gap
from metagen_ray.study import Recipe

ADAPTERS = 16
ALONE = 2  # fine-tunes with a process each that are run; the rate is theirs
SAME_ORDER = Way(8)
WAYS = (SAME_ORDER, Way(8, padding_free=True), Way(8, grouped=True))
EPOCHS = {"1M": 3}  # a round of the slow side stays under a minute; 1 at other sizes


def rows(options: Options) -> list[Row]:
    """Both comparisons at every size."""
    found = []
    with tempfile.TemporaryDirectory(prefix="metagen-bench-") as folder:
        for size in options.sizes:
            base = make_base(size, Path(folder))
            recipe, jobs = fine_tunes(base, options)
            found.append(_warm(base, recipe, jobs, options))
            if size not in GPU_SIZES:
                found.append(_fresh(base, recipe, jobs, options, Path(folder)))
    return found


def fine_tunes(base: Base, options: Options) -> tuple[Recipe, list[Job]]:
    """The study's recipe, and a bank of jobs with a seed each."""
    recipe = Recipe(epochs=1 if options.quick else EPOCHS.get(base.size, 1))
    return recipe, make_jobs(base, *((4, 16) if options.quick else (ADAPTERS, 128)))


def make_jobs(base: Base, count: int, row_count: int) -> list[Job]:
    """Fine-tunes on the first `row_count` rows of domains in turn."""
    sets = workload.fine_tunes(base, min(count, len(workload.domains())), row_count)
    return [(sets[n % len(sets)], n) for n in range(count)]


def peak_share(base: Base, recipe: Recipe, jobs: list[Job], seconds: list[float]) -> float:
    """Share of the matrix-product rate at which these jobs were trained; the shapes are those of a bank's step."""
    step = reads_of(tree for trees, _ in jobs for tree in trees[: recipe.batch_rows])
    whole = reads_of(tree for trees, _ in jobs for tree in trees).times(recipe.epochs)
    return share(training_flops(decoder_of(base), whole, recipe.rank), seconds, peak_rate(base, step))


def tokens_read(recipe: Recipe, jobs: list[Job]) -> int:
    """Tokens that training these jobs reads, over all epochs."""
    return recipe.epochs * sum(tree.read_tokens() for trees, _ in jobs for tree in trees)


def _warm(base: Base, recipe: Recipe, jobs: list[Job], options: Options) -> Row:
    ours = Ours(base, recipe, len(jobs))
    memory = memory_gib(partial(ours.train, jobs))
    starts = [ours.start(seed) for _, seed in jobs]
    orders = [laid(trees, recipe, seed) for trees, seed in jobs]
    with Apart(Rounds, base, recipe) as peer:
        way = peer.call("choose", WAYS, orders[0], starts[0])
        peer.call("load", way, orders, starts)
        sides = {"ours": partial(ours.train, jobs), "peer": partial(peer.call, "run")}
        seconds = interleave(sides, options.rounds)
        if way.grouped:  # its rounds saw another order
            peer.call("load", SAME_ORDER, orders, starts)
            peer.call("run")
        name, trained = peer.call("name"), peer.call("adapters")
        control = peer.call("control", orders, starts)
    return compared(
        1,
        base.size,
        f"{len(jobs)} adapters in one bank",
        f"{name}, one after another in a warm process",
        "adapters/s",
        rates(seconds["ours"], len(jobs)),
        rates(seconds["peer"], len(jobs)),
        parity=max(relative_gap(a, b) for a, b in zip(ours.adapters, trained, strict=True)),
        parity_of="difference of the final weights over their norm, the largest of all adapters",
        parity_of_peers=control,
        peak_share=peak_share(base, recipe, jobs, seconds["ours"]),
        aim={"1M": 4.0, "10M": 1.3}.get(base.size),
        setting=str(way),
        tokens_per_s=statistics.median(rates(seconds["ours"], tokens_read(recipe, jobs))),
        engine=ours.engine_name,
        steps=len(orders[0]) // recipe.batch_rows,
        memory_gib=memory,
    )


def _fresh(base: Base, recipe: Recipe, jobs: list[Job], options: Options, folder: Path) -> Row:
    together = write_jobs(folder / "bank.json", base, recipe, jobs)
    single = [write_jobs(folder / f"one-{n}.json", base, recipe, [job]) for n, job in enumerate(jobs[:ALONE])]

    def one_by_one() -> None:
        for job in single:
            run_alone("trl", job, folder / "trl")

    sides = {"ours": partial(run_alone, "bank", together, folder / "bank"), "peer": one_by_one}
    seconds = interleave(sides, options.rounds)
    return compared(
        1,
        base.size,
        f"{len(jobs)} adapters in one bank, with the start of its one process",
        "TRL SFTTrainer + PEFT, a fresh process for each",
        "adapters/s",
        rates(seconds["ours"], len(jobs)),
        rates(seconds["peer"], len(single)),
        parity_of="not compared: each side draws its own start; see the warm process",
        aim=10.0,
        note=f"{len(single)} single processes were run in each round",
    )
