"""Row 8: a study through Ray, against the same stages in a loop of one process without Ray; start-up apart.

The loop calls the stages' own code: the bank's loop, the answer and judge workers, meta-SFT and the report. Where a
study has Ray Train, Ray Data, Serve and HTTP, it has a `for` and vLLM's `LLM`, with as many threads. Apart stand, on
Ray's side, connecting, waiting for the app, and what a trainer of one row takes from its call to its end, once for each
of the two trainings; on the loop's side loading the bases and starting the engine.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks.measure import ROOT, Options, Row, compared
from benchmarks.study import LIMIT_S, run_study
from metagen_ray.study import load_study

ROUNDS = 5
PRESET = "pocket"
START_UP = ("connect", "wait for the app")


def rows(options: Options) -> list[Row]:
    """One comparison; the start-up of a trainer is measured first."""
    preset, settings = PRESET, ("domains=4",) if options.quick else ()
    trainers = trainer_start_s(preset, settings)
    ray_s, plain_s, gap, stages = [], [], 0.0, {}
    for _ in range(1 if options.quick else ROUNDS):
        with tempfile.TemporaryDirectory(prefix="metagen-bench-", ignore_cleanup_errors=True) as folder:
            through_ray = run_study(preset, settings, Path(folder) / "ray").stages
            plain = _alone(preset, settings, Path(folder) / "plain")
            gap = max(gap, adapter_gap(preset, settings, Path(folder)))
        ray_s.append(sum(s for name, s in through_ray.items() if name not in START_UP) - trainers)
        plain_s.append(sum(plain.values()))
        stages = {"ray": through_ray, "plain": plain}
    row = compared(
        8,
        f"{preset}, {load_study(preset, settings).domains} domains",
        "a study through Ray, start-up apart; the ratio is the loop's time over ours",
        "the same stages in a plain loop",
        "s",
        [1 / s for s in ray_s],
        [1 / s for s in plain_s],
        parity=gap,
        parity_of="difference of an adapter's weights over their norm, the largest of all",
        aim=0.95,
        trainer_start_s=trainers,
        stages=stages,
    )
    return [row | {"ours": 1 / row["ours"], "peer": 1 / row["peer"]}]


def trainer_start_s(preset: str, settings: tuple[str, ...]) -> float:
    """Seconds of the study's two trainings on one row each, beyond the training: all that Ray Train takes to start."""
    import ray

    from metagen_ray.stages.context import StudyContext
    from metagen_ray.stages.object_sft import domain_trees
    from metagen_ray.stages.plan import Plan
    from metagen_ray.training.lanes import run_lanes, run_meta
    from metagen_ray.training.worker import AdapterJob

    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp", ignore_cleanup_errors=True) as room:
        study = load_study(preset, [*settings, f"store={room}/store"])
        plan = Plan(StudyContext(study))
        (row, *_), base = domain_trees(plan, plan.context.active[0].id), plan.context.base.directory
        recipe = study.object_sft.model_copy(update={"epochs": 1})
        meta = study.meta_sft.recipe.model_copy(update={"epochs": 1})
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(include_dashboard=False, _temp_dir=room, runtime_env=environment, log_to_driver=False)
        try:
            began = time.monotonic()
            outcomes = run_lanes(
                base, [AdapterJob("0" * 64, [row], recipe, 0)], study.resources, f"{room}/store", "object_sft", "start"
            )
            result = run_meta(base, [[row]], meta, 0, study.resources, "start")
            return time.monotonic() - began - result.seconds - sum(o.seconds for o in outcomes)
        finally:
            ray.shutdown()


def adapter_gap(preset: str, settings: tuple[str, ...], folder: Path) -> float:
    """How far the two runs' adapters are apart."""
    from benchmarks.peers import relative_gap
    from metagen_ray.stages.context import StudyContext
    from metagen_ray.stages.plan import Plan
    from metagen_ray.store import open_store
    from metagen_ray.training.lora import WEIGHTS, read_adapter

    plan = Plan(StudyContext(load_study(preset, settings)))
    gaps = []
    for shard in plan.adapters:
        found = []
        for side in ("ray", "plain"):
            files = folder / "files" / side / shard.domain
            files.mkdir(parents=True)
            open_store(str(folder / side)).fetch_files("object_sft", shard.key, files)
            found.append(read_adapter({WEIGHTS: (files / WEIGHTS).read_bytes()}))
        gaps.append(relative_gap(*found))
    return max(gaps)


def _alone(preset: str, settings: tuple[str, ...], store: Path) -> dict[str, float]:
    """The loop in a process of its own; seconds by stage."""
    command = [sys.executable, "-m", "benchmarks.plain_study", preset, str(store), *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Loop:
    """A study in one process; `seconds` fills with its stages."""

    def __init__(self, preset: str, settings: list[str]) -> None:
        import torch

        from benchmarks.engine import Vllm
        from metagen_ray.stages import serve_app
        from metagen_ray.stages.answers import AppAddress
        from metagen_ray.stages.context import StudyContext
        from metagen_ray.stages.plan import Plan
        from metagen_ray.training.lora import LoraShape

        self.study = load_study(preset, settings)
        self.plan = Plan(StudyContext(self.study))
        self.seconds: dict[str, float] = {}
        self.bank = self.study.resources.bank or min(16, len(self.plan.adapters))
        torch.set_num_threads(self.study.resources.threads)
        self.object_trainer = self._trainer([LoraShape.of(self.study.object_sft)] * self.bank)
        self.meta_trainer = self._trainer([LoraShape.of(self.study.meta_sft.recipe)])
        self.engine = Vllm(serve_app.spec(self.plan), lora=True)
        self.address = AppAddress("", "", self.plan.context.base.name)

    def run(self) -> dict[str, float]:
        """Every stage in the driver's order."""
        plan = self.plan
        self._timed("object_sft", self._train)
        self._asked("ground_truth", plan.truth)
        self._judged("truth")
        self._asked("predict untrained", plan.untrained)
        self._judged("untrained")
        self._timed("meta_sft", self._meta)
        self._asked("predict meta", plan.predictions)
        self._judged("meta")
        self._timed("analyse and report", self._report)
        self.engine.close()
        return self.seconds

    def _train(self) -> None:
        from metagen_ray.stages.object_sft import domain_trees
        from metagen_ray.training.worker import AdapterJob, train_share

        context, recipe = self.plan.context, self.study.object_sft
        jobs = [
            AdapterJob(s.key, domain_trees(self.plan, s.domain), recipe, s.seed)
            for s in (*self.plan.adapters, *self.plan.second_adapters)
        ]
        put = partial(context.store.put_files, "object_sft")
        train_share(lambda shapes: self.object_trainer, jobs, put, _must_be_ok, bank=self.bank)

    def _meta(self) -> None:
        from metagen_ray.stages.meta_rows import epoch_trees
        from metagen_ray.training.worker import train_meta

        recipe = self.study.meta_sft.recipe
        epochs = [epoch_trees(self.plan, epoch) for epoch in range(recipe.epochs)]
        result = train_meta(self.meta_trainer, epochs, recipe, self.study.seed)
        self.plan.context.store.put_files("meta_sft", self.plan.meta, result.files, {})

    def _report(self) -> None:
        from metagen_ray.stages.report import write_study_report

        write_study_report(self.plan, {}, {})

    def _asked(self, name: str, asks: Any) -> None:
        from metagen_ray.stages.answers import AnswerWorker, ask_work

        self._timed(name, lambda: self._worked(AnswerWorker, *ask_work(self.plan, asks, self.address, {})))

    def _judged(self, part: str) -> None:
        from metagen_ray.stages.judge import JudgeWorker, judge_work

        shards = self.plan.judged[part]
        self._timed(
            f"judge {part}", lambda: self._worked(JudgeWorker, *judge_work(self.plan, shards, self.address, {}))
        )

    def _worked(self, kind: Any, arguments: Mapping[str, Any], work: list[dict[str, Any]]) -> None:
        worker = kind(**arguments)
        worker._client = cast(Any, self.engine)
        for row in work:
            asyncio.run(worker.do(row))

    def _trainer(self, shapes: list) -> Any:
        from metagen_ray.training.base import AdaptedModel, load_base
        from metagen_ray.training.worker import Trainer
        from metagen_ray.training.zero import DeepSpeedEngine, start_alone

        start_alone()
        model = AdaptedModel(load_base(self.plan.context.base.directory), shapes)
        return Trainer(model, DeepSpeedEngine(model, self.study.resources.zero_stage))

    def _timed(self, name: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - began, 2)


def _must_be_ok(outcome: Any) -> None:
    if not outcome.ok:
        raise RuntimeError(f"adapter {outcome.key[:12]}: {outcome.reason}")


if __name__ == "__main__":
    chosen, where, *given = sys.argv[1:]
    print(json.dumps(Loop(chosen, [*given, f"store={where}"]).run()))
