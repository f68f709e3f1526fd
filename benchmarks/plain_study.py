"""Row 8: a study through Ray, against the same stages in a loop of one process without Ray; start-up apart.

The loop calls the stages' own code: the bank's loop, the answer and judge workers, meta-SFT and the report. Where a
study has Ray Train, Ray Data, Serve and HTTP, it has a `for` and vLLM's `LLM`, with as many threads. The study's phases
take turns, so that the app's start hides under no training.

Apart stand, on Ray's side, connecting, waiting for nodes and the app, and what a trainer of one row takes from its call
to its end, once for each of the two trainings; on the loop's side loading the bases and starting the engine. A second
line also sets apart what Ray Data takes to start and end a pass whose workers do nothing, once for each pass.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks.measure import ROOT, Options, Row, compared
from benchmarks.study import LIMIT_S, run_study
from metagen_ray.study import Study, load_study

ROUNDS = 5
PRESET = "pocket"
START_UP = ("connect", "wait for")
IN_TURN = "resources.phases=in_turn"
IDLE_PASSES = 4  # the first of a Ray is left out: it starts what the others find


def rows(options: Options) -> list[Row]:
    """The study against the loop, without and with the passes' start; starts are measured in every round."""
    preset, settings = PRESET, ("domains=4",) if options.quick else ()
    found: list[dict[str, float]] = []
    stages = {}
    for _ in range(1 if options.quick else ROUNDS):
        with tempfile.TemporaryDirectory(prefix="metagen-bench-", ignore_cleanup_errors=True) as folder:
            through_ray = run_study(preset, (*settings, IN_TURN), Path(folder) / "ray").stages
            plain = _alone(preset, settings, Path(folder) / "plain")
            with _local_ray(preset, settings) as study:
                trainers, one_pass = trainer_start_s(study), pass_start_s(study)
            worked = sum(s for name, s in through_ray.items() if not name.startswith(START_UP)) - trainers
            passes = one_pass * sum(name.startswith(("ground_truth", "predict", "judge")) for name in through_ray)
            gap = adapter_gap(preset, settings, Path(folder))
        found.append({"ray": worked, "plain": sum(plain.values()), "trainers": trainers, "passes": passes, "gap": gap})
        stages = {"ray": through_ray, "plain": plain}

    def row(what: str, passes: float) -> Row:
        line = compared(
            8,
            f"{preset}, {load_study(preset, settings).domains} domains",
            f"a study through Ray, {what} apart; the ratio is the loop's time over ours",
            "the same stages in a plain loop",
            "s",
            [1 / (of["ray"] - passes * of["passes"]) for of in found],
            [1 / of["plain"] for of in found],
            parity=max(of["gap"] for of in found),
            parity_of="difference of an adapter's weights over their norm, the largest of all",
            aim=0.95,
            trainer_start_s=[round(of["trainers"], 2) for of in found],
            pass_start_s=[round(of["passes"], 2) for of in found],
            stages=stages,
        )
        return line | {"ours": 1 / line["ours"], "peer": 1 / line["peer"]}

    return [
        row("start-up of app and trainers", passes=0.0),
        row("start-up of app, trainers and passes", passes=1.0),
    ]


@contextmanager
def _local_ray(preset: str, settings: tuple[str, ...]) -> Iterator[Study]:
    """A Ray as a study starts it, and the study with a store in its room."""
    import ray

    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp", ignore_cleanup_errors=True) as room:
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(include_dashboard=False, _temp_dir=room, runtime_env=environment, log_to_driver=False)
        try:
            yield load_study(preset, [*settings, f"store={room}/store"])
        finally:
            ray.shutdown()


def trainer_start_s(study: Study) -> float:
    """Seconds of the study's two trainings on one row each, beyond the training: all that Ray Train takes to start."""
    from metagen_ray.stages.context import StudyContext
    from metagen_ray.stages.object_sft import domain_trees
    from metagen_ray.stages.plan import Plan
    from metagen_ray.training.lanes import run_lanes, run_meta
    from metagen_ray.training.worker import AdapterJob

    plan = Plan(StudyContext(study))
    (row, *_), base = domain_trees(plan, plan.context.active[0].id), plan.context.base.directory
    recipe = study.object_sft.model_copy(update={"epochs": 1})
    meta = study.meta_sft.recipe.model_copy(update={"epochs": 1})
    began = time.monotonic()
    outcomes = run_lanes(
        base, [AdapterJob("0" * 64, [row], recipe, 0)], study.resources, study.store, "object_sft", "start"
    )
    result = run_meta(base, [[row]], meta, 0, study.resources, "start")
    return time.monotonic() - began - result.seconds - sum(o.seconds for o in outcomes)


class Idle:
    """A worker that does nothing."""

    async def do(self, row: Mapping[str, Any]) -> Mapping[str, float]:
        """No figures."""
        return {}


def pass_start_s(study: Study) -> float:
    """Seconds that a pass of Ray Data takes over two rows with nothing to do; the median of some."""
    from metagen_ray.stages.shards import run_shards

    seconds = []
    for _ in range(IDLE_PASSES):
        began = time.monotonic()
        run_shards("start", Idle, {}, [{"key": "a"}, {"key": "b"}], study.resources, lambda outcome: None)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds[1:])


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
