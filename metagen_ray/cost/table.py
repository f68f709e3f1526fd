"""An estimate as plain text for a terminal. Computes nothing."""

from collections.abc import Sequence

from metagen_ray.cost.estimate import Estimate, StageCost
from metagen_ray.cost.roofline import Machine
from metagen_ray.cost.spared import Spared

HEADS = ("unshared", "trained", "read", "written", "FLOPs", "bytes", "h at limit", "h stated", "USD")


def cost_table(estimate: Estimate, machine: Machine, price: float, notes: Sequence[str]) -> str:
    """Stages down, figures across, then the schedule, what is assumed and where the figures come from."""
    rows = [row for row in estimate.stages if row.units]
    lines = [f"{'stage':18s}{'units':>7s}" + "".join(f"{head:>11s}" for head in HEADS)]
    lines += [_line(row, price) for row in (*rows, estimate.total)]
    return "\n".join([*lines, "", *_schedule(estimate, price), *_sources(machine, price), *notes])


def spared_lines(spared: Spared) -> list[str]:
    """What the predictor spares, in two lines."""
    one, other, count = spared.predicted, spared.fine_tuned, spared.break_even
    after = f"from {count:,} new datasets on the study has paid for itself" if count else "it never pays for itself"
    return [
        f"spared: {spared.foreseen} datasets foreseen without their fine-tunes, for {spared.paid_fine_tunes} "
        f"fine-tunes and one meta-SFT paid: {spared.per_prediction:.2f} spared for each one paid",
        f"a new dataset: {short(one.tokens)} tokens ({short(one.flops)} FLOPs) to foresee, {short(other.tokens)} "
        f"({short(other.flops)}) to fine-tune and ask; {after}",
    ]


def _line(row: StageCost, price: float) -> str:
    work = row.work
    counts = (work.unshared, work.trained.tokens, work.read.tokens, work.sampled, row.flops, row.bytes)
    cells = [*(short(count) if count else "" for count in counts), hours(row.limit_h), hours(row.hours)]
    return f"{row.stage:18s}{row.units:7,d}" + "".join(f"{c:>11s}" for c in (*cells, money(row.hours * price)))


def _schedule(estimate: Estimate, price: float) -> list[str]:
    wall_h, total = estimate.wall_s / 3600, estimate.total
    paid = wall_h * estimate.gpus
    share = 100 * estimate.bound.seconds / estimate.wall_s if estimate.wall_s else 100.0
    work = total.work
    shared = 1 - (work.trained.tokens + work.read.tokens) / work.unshared if work.unshared else 0.0
    return [
        f"{estimate.gpus} GPUs: {hours(wall_h)} h, {hours(paid)} GPU-hours, {money(paid * price)} USD at the stated "
        f"utilisation; the lower bound is {share:.0f} % of it",
        f"banks of {estimate.bank} adapters; shared prefixes spare {shared:.0%} of the tokens trained and read",
    ]


def _sources(machine: Machine, price: float) -> list[str]:
    gpu, used = machine.gpu, machine.utilisation
    return [
        f"{gpu.name}: {gpu.tflops:,.0f} TFLOP/s bf16, {gpu.bandwidth_gb_s:,.0f} GB/s, {gpu.memory_gib:.0f} GiB "
        f"({gpu.source})",
        f"{price:.2f} USD an hour ({gpu.price_source if price == gpu.usd_per_hour else '--price'})",
        f"stated utilisation: {used.training:.0%} of peak FLOPs in training, {used.prefill:.0%} in reading, "
        f"{used.bandwidth:.0%} of the bandwidth in writing",
    ]


def short(count: float) -> str:
    """A count with three digits and the letter of its thousands: 1.23M."""
    for letter in ("", "k", "M", "G", "T", "P", "E"):
        if abs(count) < 999.5:
            return f"{count:.3g}{letter}"
        count /= 1000
    return f"{count:.3g}Z"


def hours(value: float) -> str:
    """Hours with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def money(usd: float) -> str:
    """USD to the cent, or two digits where that is nothing."""
    return f"{usd:,.2f}" if usd >= 0.1 or not usd else f"{usd:.2g}"
