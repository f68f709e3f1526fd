"""Lower bound / makespan with 1..64 virtual GPUs: workers that sleep the modelled time of a real study's shards.

    python -m benchmarks.makespan [--rounds 5] [--seconds 10] [--gpus 8 64] [--results FILE]

The study is 100 domains on Qwen3-4B, 10,000 cells of 12 questions x 4 samples, predicted and judged, on H100s. Units
come from the cost model, banks from `choose_bank`, the order from the scheduler of `metagen plan --cost`; a second is
scaled down so that a round takes about `--seconds`. bound = max(work / N, longest chain). Prints what the study
costs, then one JSON line a figure, which it appends too.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metagen_ray.cost.decoder import Decoder
from metagen_ray.cost.estimate import estimate, study_bank
from metagen_ray.cost.gpus import find_gpu
from metagen_ray.cost.makespan import Task, bound_of, simulate, sleep_through
from metagen_ray.cost.roofline import Machine
from metagen_ray.cost.table import cost_table
from metagen_ray.cost.units import META, SFT, Unit, judge_parts, tasks_of
from metagen_ray.cost.work import Group, Rubric, Work, asking, group, judging, row_tokens, straight, tree_reads

QWEN3_4B = Decoder(
    hidden=2560, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=9728, vocab=151_936, tied=True
)
MACHINE = Machine(find_gpu("H100-SXM"), QWEN3_4B)
GPUS = (64, 32, 16, 8, 4, 2, 1)  # the quick ones first: a round of one takes four minutes
ASLEEP = 20  # threads that sleep side by side, in as many rounds as that makes
DOMAINS, BLOCK, QUESTIONS, SAMPLES = 100, 20, 12, 4
PROMPT, ANSWER = 40, 200  # tokens of a question and of an answer
ROW_PROMPT, ROW_ANSWER, ROWS = 40, 160, (400, 1200)  # tokens of a training row, fewest and most rows of a domain
K, DRAWS, BRANCHES = 8, 4, 8
RANK, EPOCHS, BATCH, META_BATCH = 32, 2, 16, 64
RUBRIC = Rubric(head=120, tail=10, places=(1,) * 9 + (2,))  # digits are tokens of their own: 1..9, then 10
RUBRICS = 2  # the score and coherence
TASK_S = 0.01  # mean sleep at least: a worker wakes up 0.1 ms late on an idle machine


def main() -> None:
    """Measure, print and append."""
    options = arguments()
    most = estimate(study_units(), MACHINE, max(options.gpus))
    print(cost_table(most, MACHINE, MACHINE.gpu.usd_per_hour, []), flush=True)
    for row in rows(options.rounds, options.seconds, options.gpus):
        line = json.dumps({**row, **where()})
        print(line, flush=True)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a") as file:
            file.write(line + "\n")


def rows(rounds: int = 5, seconds: float = 10.0, gpus: Sequence[int] = GPUS) -> Iterator[dict[str, Any]]:
    """Two figures for each number of GPUs, as soon as it has slept: bound / makespan, and work / N / bound."""
    units = study_units()
    for n in gpus:
        bank = study_bank(units, MACHINE, n)
        tasks = tasks_of(units, MACHINE, n, bank)
        yield from _rows_of(n, bank, tasks, _slept(tasks, n, scale_of(tasks, n, seconds), rounds))


def _slept(tasks: list[Task], gpus: int, scale: float, rounds: int) -> list[float]:
    """Makespan of every round. Those of few GPUs sleep side by side: one after the other they took forty minutes."""
    with ThreadPoolExecutor(max(1, ASLEEP // gpus)) as side_by_side:
        return list(side_by_side.map(lambda _: sleep_through(tasks, gpus, scale), range(rounds)))


def scale_of(tasks: list[Task], gpus: int, seconds: float) -> float:
    """Seconds slept for one modelled: a round takes `seconds`, or more where its tasks would be too short."""
    return max(seconds, TASK_S * len(tasks) / gpus) / bound_of(tasks, gpus).seconds


def _rows_of(gpus: int, bank: int, tasks: list[Task], slept: list[float]) -> list[dict[str, Any]]:
    bound, exact = bound_of(tasks, gpus), simulate(tasks, gpus)
    ratios = [bound.seconds / s for s in slept]
    size = f"{gpus} GPUs, banks of {bank}, {DOMAINS**2:,} cells"
    lost = bound.work_s / gpus / bound.seconds
    return [
        _row("9 bound / makespan", size, statistics.median(slept), bound.seconds, ratios, bound.seconds / exact),
        _row("9 work / N / bound", size, bound.seconds, bound.work_s / gpus, [lost], lost),
    ]


def _row(row: str, size: str, ours: float, peer: float, ratios: list[float], simulated: float) -> dict[str, Any]:
    """Seconds of the model; `parity` is the simulated ratio minus the measured one."""
    ratio = statistics.median(ratios)
    return {
        "row": row,
        "size": size,
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "ratio": round(ratio, 4),
        "low": round(min(ratios), 4),
        "high": round(max(ratios), 4),
        "parity": round(simulated - ratio, 4),
        "peak_share": None,
    }


def study_units() -> list[Unit]:
    """Every fine-tune, shard and judge shard of the study."""
    blocks = range(DOMAINS // BLOCK)
    adapter = QWEN3_4B.adapter_parameters(RANK)
    tunes = _fine_tunes(adapter)
    truth = [
        Unit("ground_truth", f"truth {i}.{b}", asking([_bare()], SAMPLES, ANSWER), adapter, (f"tune {i}",))
        for i in range(DOMAINS)
        for b in blocks
    ]
    base = [Unit("predict untrained", f"Base {b}", asking([_bare()], SAMPLES, ANSWER)) for b in blocks]
    untrained = [*base, *_shown("predict untrained", "UntrainedICL", ())]
    meta = [*_shown("predict meta", "MetaSFT", (META,)), *_shown("predict meta", "Scrambled", (META,))]
    passes = {"truth": truth, "untrained": untrained, "meta": meta}
    judged = [_judged(part, b, passes) for part in passes for b in blocks]
    learned = tuple(unit.key for unit in truth if int(unit.key.split()[1].split(".")[0]) % 2 == 0)
    return [*tunes, *truth, *untrained, Unit(META, META, _meta_sft(), adapter, learned), *meta, *judged]


def _fine_tunes(adapter: int) -> list[Unit]:
    rng, units = random.Random(0), []
    for i in range(DOMAINS):
        rows = rng.randint(*ROWS)
        reads = straight(ROW_PROMPT + ROW_ANSWER - 1, 0, ROW_ANSWER).times(EPOCHS * rows)
        work = Work(trained=reads, updates=EPOCHS * -(-rows // BATCH), unshared=reads.tokens)
        units.append(Unit(SFT, f"tune {i}", work, adapter))
    return units


def _bare() -> Group:
    return group(0, [PROMPT] * (BLOCK * QUESTIONS))


def _shown(stage: str, predictor: str, after: tuple[str, ...]) -> list[Unit]:
    """Shards of an in-context predictor; a domain's shards share its prefixes on one replica."""
    prefix = K * (ROW_PROMPT + ROW_ANSWER)
    groups = [group(prefix, [PROMPT] * (BLOCK * QUESTIONS // DRAWS))] * DRAWS
    return [
        Unit(stage, f"{predictor} {i}.{b}", asking(groups, SAMPLES, ANSWER, reads_prefix=b == 0), 0, after)
        for i in range(DOMAINS)
        for b in range(DOMAINS // BLOCK)
    ]


def _meta_sft() -> Work:
    tree = K * (ROW_PROMPT + ROW_ANSWER), [([q] * PROMPT, ANSWER) for q in range(BRANCHES) for _ in range(SAMPLES)]
    learned = DOMAINS // 2
    trees = EPOCHS * learned * (learned - 1) * QUESTIONS / BRANCHES
    updates = trees * BRANCHES * SAMPLES / META_BATCH
    return Work(trained=tree_reads(*tree).times(trees), updates=updates, unshared=trees * row_tokens(*tree))


def _judged(part: str, block: int, passes: dict[str, list[Unit]]) -> Unit:
    """All answers of a pass to one block; it waits for them and for the passes before."""
    read = [unit for unit in passes[part] if unit.key.split()[1].split(".")[-1] == str(block)]
    answers = sum(unit.work.answers for unit in read) / (BLOCK * QUESTIONS)
    one = judging(RUBRIC, PROMPT, answers, ANSWER)
    work = sum([one] * (RUBRICS * BLOCK * QUESTIONS), Work())
    earlier = list(passes)[: list(passes).index(part)]
    after = (*(unit.key for unit in read), *(f"judge {p} {block}" for p in earlier))
    return Unit(f"judge {part}", f"judge {part} {block}", work, 0, after, judge_parts(work))


def where() -> dict[str, str]:
    """The machine, the commit and the date of a figure."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"machine": machine, "commit": commit, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a round for one number of GPUs")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS, help="numbers of virtual GPUs")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/makespan.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
