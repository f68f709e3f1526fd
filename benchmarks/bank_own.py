"""Row 2: a bank of sixteen against our own loop with one adapter at a time; and tokens a second against G in 1..64.

Same rows, seeds and engine; nothing but the number of slots differs.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.bank_trl import fine_tunes, make_jobs, peak_share, tokens_read
from benchmarks.bases import Base, make_base
from benchmarks.curves import Curve, write_curve
from benchmarks.measure import Options, Row, compared, interleave, rates, timed
from benchmarks.ours import Ours
from benchmarks.peak import memory_gib
from benchmarks.peers import relative_gap
from metagen_ray.study import Recipe

CURVE_G = (1, 2, 4, 8, 16, 32, 64)
CURVE_ROUNDS = 3
CURVE_JOBS, CURVE_ROWS = 8, 32  # at least so many fine-tunes, of so many rows each


def rows(options: Options) -> list[Row]:
    """The comparison at every size; draws the curve."""
    found, points = [], []
    with tempfile.TemporaryDirectory(prefix="metagen-bench-") as folder:
        for size in options.sizes:
            base = make_base(size, Path(folder))
            found.append(_compare(base, options))
            if not options.quick:
                points += [(size, g, *_speed(base, g)) for g in CURVE_G]
    if points:
        columns = ("size", "adapters_in_a_bank", "tokens_per_s", "low", "high")
        write_curve(
            Curve(f"bank-{'-'.join(options.sizes)}", "Training tokens a second by adapters in a bank", columns, points),
        )
    return found


def _compare(base: Base, options: Options) -> Row:
    recipe, jobs = fine_tunes(base, options)
    bank, alone = Ours(base, recipe, len(jobs)), Ours(base, recipe, 1)
    memory = memory_gib(partial(bank.train, jobs))
    seconds = interleave({"ours": partial(bank.train, jobs), "peer": partial(alone.train, jobs)}, options.rounds)
    return compared(
        2,
        base.size,
        f"{len(jobs)} adapters in one bank",
        "our own loop, one adapter after another",
        "tokens/s",
        rates(seconds["ours"], tokens_read(recipe, jobs)),
        rates(seconds["peer"], tokens_read(recipe, jobs)),
        parity=max(relative_gap(a, b) for a, b in zip(bank.adapters, alone.adapters, strict=True)),
        parity_of="difference of the final weights over their norm, the largest of all adapters",
        peak_share=peak_share(base, recipe, jobs, seconds["ours"]),
        aim={"1M": 2.0, "10M": 1.0}.get(base.size),
        engine=bank.engine_name,
        memory_gib=memory,
    )


def _speed(base: Base, adapters: int) -> tuple[float, float, float]:
    """Median, lowest and highest tokens a second of a bank of this size."""
    recipe, jobs = Recipe(epochs=1), make_jobs(base, max(adapters, CURVE_JOBS), CURVE_ROWS)
    bank = Ours(base, recipe, adapters)
    bank.train(jobs)
    speed = [tokens_read(recipe, jobs) / timed(partial(bank.train, jobs)) for _ in range(CURVE_ROUNDS)]
    return statistics.median(speed), min(speed), max(speed)
