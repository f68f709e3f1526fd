"""What each command does with its arguments, and what it prints; returns the exit code. Computes nothing itself.

Rooms are opened inside the commands: `metagen --help` and a wrong argument need neither Ray nor torch.
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from metagen_ray.errors import InputError, MachineError
from metagen_ray.study import Study, load_study, parse_yaml, preset_names, study_from


def plan(options: Namespace) -> int:
    """What a study needs, and what of it is there."""
    from metagen_ray.stages.context import StudyContext
    from metagen_ray.stages.plan import Plan

    study = load_study(options.study, options.overrides)
    cost = _cost_settings(options)
    plan = Plan(StudyContext(study))
    print(f"run {study.run_name()}  suite {study.suite} ({len(plan.context.active)} domains)  model {study.model}")
    halves = plan.context.halves
    print(f"meta-train {len(halves.meta_train)} domains, meta-eval {len(halves.meta_eval)}, seed {study.seed}")
    _print_plan(plan)
    if cost:
        from metagen_ray.stages.costs import cost_text

        print(f"\n{cost_text(plan, **cost)}")
    return 0


def _cost_settings(options: Namespace) -> dict[str, Any]:
    """Arguments of the cost's text, empty without --cost; wrong ones are told before anything is planned."""
    from metagen_ray.cost.gpus import find_gpu
    from metagen_ray.cost.roofline import Utilisation

    names = ("gpu", "gpus", "price", "utilisation", "prefill_utilisation", "bandwidth_utilisation")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if not options.cost:
        if given:
            raise InputError(f"--{next(iter(given)).replace('_', '-')} belongs to the cost; add --cost")
        return {}
    shares = {"utilisation": "training", "prefill_utilisation": "prefill", "bandwidth_utilisation": "bandwidth"}
    utilisation = Utilisation(**{name: given[option] for option, name in shares.items() if option in given})
    gpu = find_gpu(given.get("gpu", "H100"))
    return {"gpu": gpu, "gpus": given.get("gpus", 1), "price": given.get("price"), "utilisation": utilisation}


def _print_plan(plan) -> None:
    from metagen_ray.stages.status import Status

    print(f"{'stage':20s} {'shards':>7s} {'done':>7s} {'missing':>8s} {'tokens left':>12s}  missing because")
    for line in Status(plan).lines():
        why = "" if not line.missing else f"waits for {line.waits_for}" if line.waits_for else "not run yet"
        if line.taken:
            graded = line.stage.startswith("judge")
            why += f"; grades of {line.taken} shards are there" if graded else f"; {line.taken:,d} cells are there"
        print(f"{line.stage:20s} {line.shards:7d} {line.done:7d} {line.missing:8d} {line.tokens:12,d}  {why}")


def run(options: Namespace) -> int:
    """Run a study."""
    from metagen_ray.stages.driver import run_study

    study = load_study(options.study, options.overrides)
    run_study(study, options.address, options.repair, options.only)
    return 0


def serve(options: Namespace) -> int:
    """Bring an app up to stay."""
    from metagen_ray import cluster, nodes
    from metagen_ray.stages import serve_app
    from metagen_ray.stages.context import StudyContext
    from metagen_ray.stages.plan import Plan

    study = load_study(options.study, options.overrides)
    cluster.reach(options.address or "auto")
    nodes.hold(study.resources, [nodes.SERVE], [nodes.SERVE])
    app = serve_app.up(Plan(StudyContext(study)))
    print(f"{app.url} serves {app.base_name} and adapters of {study.store}; its token lies in {app.token_path}")
    print("it outlives this command; `metagen down` ends it")
    return 0


def down(options: Namespace) -> int:
    """End what outlives a job."""
    from metagen_ray import cluster

    cluster.reach(options.address or "auto")
    gone = cluster.take_down()
    print("\n".join(gone) if gone else "nothing of metagen was left")
    return 0


def submit(options: Namespace) -> int:
    """Run a study as a job."""
    from metagen_ray.submit import Job, parse_env, submit

    job = Job(options.python, options.ship_code, parse_env(options.env))
    return submit(load_study(options.study, options.overrides), options.address, job, options.follow)


def doctor(options: Namespace) -> int:
    """Look at a cluster's nodes."""
    import json

    from metagen_ray import cluster, doctor

    study = load_study(options.study, options.overrides)
    cluster.reach(options.address)
    nodes = doctor.collect(study.store)
    found = doctor.findings(nodes, study.resources)
    if options.json:
        print(json.dumps(doctor.as_json(nodes, found), indent=1))
    else:
        print(doctor.table(nodes), *map(str, found), sep="\n")
        print(f"{len(nodes)} nodes, {len(found)} findings" if found else f"{len(nodes)} nodes, nothing to change")
    return MachineError.exit_code if doctor.any_wrong(found) else 0


def status(options: Namespace) -> int:
    """How far a run is."""
    from metagen_ray.stages.pulse import driver_line, read_pulse

    plan = _plan_of(options.run, options.store)
    pulse = read_pulse(plan.context.store, plan.study.run_name())
    _print_status(plan, pulse["stages"] if pulse else {})
    print(driver_line(pulse))
    return 0


def _print_status(plan, told: Mapping[str, Any]) -> None:
    """Shards as the store has them, pace and failures as the driver has told them last."""
    from metagen_ray.stages.pulse import pace
    from metagen_ray.stages.status import Status

    print(f"{'stage':20s} {'shards':>7s} {'done':>7s} {'missing':>8s} {'failed':>7s} {'pace':>11s}  left")
    for line in Status(plan).lines():
        own = told.get(line.stage, {})
        rate, left = pace(own, line.missing)
        state = left if own.get("running") else ""
        counts = f"{line.shards:7d} {line.done:7d} {line.missing:8d} {own.get('failed', 0):7d}"
        print(f"{line.stage:20s} {counts} {rate:>11s}  {state}".rstrip())


def report(options: Namespace) -> int:
    """Write a run's report again."""
    from metagen_ray.stages.ledger import versions
    from metagen_ray.stages.report import write_study_report

    plan = _plan_of(options.run, options.store)
    _require_finished(plan)
    write_study_report(plan, versions(), {})
    return 0


def combine(options: Namespace) -> int:
    """Pool finished runs."""
    from metagen_ray.stages.combine import combine_runs

    plans = [_plan_of(run, options.store) for run in options.runs]
    for plan in plans:
        _require_finished(plan)
    combine_runs(plans)
    return 0


def score(options: Namespace) -> int:
    """Log-likelihoods of given answers."""
    from metagen_ray.base_model import find_base
    from metagen_ray.stages.score import adapter_files, score_lines

    model, root = _model_of(options.model)
    base = find_base(model)
    if options.out and not options.out.parent.is_dir():
        raise InputError(f"--out {options.out}: no such folder; make it first")
    adapter = adapter_files(options.adapter, options.store or root) if options.adapter else None
    lines = score_lines(base, options.file, adapter)
    if options.out is None:
        print("\n".join(lines))
        return 0
    try:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {options.out}: cannot be written ({error.strerror}); give another file") from None
    return 0


def _model_of(source: str) -> tuple[str, str]:
    """The base of a study, or a base by name; and the root of the store."""
    if source in preset_names() or source.endswith((".yaml", ".yml")):
        study = load_study(source)
        return study.model, study.store
    return source, "runs"


def _require_finished(plan) -> None:
    from metagen_ray.stages.status import Status

    missing = [line for line in Status(plan).lines() if line.missing]
    if missing:
        raise InputError(
            f"run {plan.study.run_name()}: {missing[0].missing} shards of {missing[0].stage} are missing; "
            "finish it with `metagen run`"
        )


def _plan_of(run: str, store: str):
    from metagen_ray.stages.context import StudyContext
    from metagen_ray.stages.plan import Plan

    return Plan(StudyContext(_study_of(run, store)))


def _study_of(run: str, root: str) -> Study:
    """The study of a run by its name in the store, or of a preset or file."""
    if run in preset_names() or run.endswith((".yaml", ".yml")):
        return load_study(run, [f"store={root}"])
    from metagen_ray.store import open_store

    store = open_store(root, read_only=True)
    runs = sorted({path.split("/")[1] for path in store.list_docs("studies") if path.endswith("/study.yaml")})
    if run not in runs:
        raise InputError(f"no run {run!r} in {root}; there are: {', '.join(runs) or 'none'}")
    where = f"studies/{run}/study.yaml"
    values = parse_yaml(store.read_doc(where).decode("utf-8", "replace"), where)
    return study_from({**values, "store": root}, where)


def carry(options: Namespace) -> int:
    """How far a character carries."""
    from metagen_ray.lab.carry import carry, carry_table
    from metagen_ray.stages.grid import read_answers
    from metagen_ray.stages.plan import BASE, META, TRUTH, UNTRAINED

    plan = _plan_of(options.run, options.store)
    if plan.context.suite.name != "pocket_advice":
        raise InputError(f"run {options.run}: suite {plan.context.suite.name} has no characters; pocket_advice has")
    _require_finished(plan)
    tags = {d.id: d.tags for d in plan.context.active}
    answers = ((a.predictor, a.train_domain, a.eval_domain, a.exact) for a in read_answers(plan))
    print(carry_table(carry(answers, tags, (TRUTH, BASE, UNTRAINED, META))))
    return 0


def pretrain(options: Namespace) -> int:
    """Make a pocket base model."""
    from metagen_ray.lab.pretrain import PretrainConfig, pretrain

    names = ("rho", "steps", "judge_steps", "rows", "length", "lr", "seed", "hidden", "layers", "compile")
    chosen = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    config = PretrainConfig(**chosen)
    options.directory.mkdir(parents=True, exist_ok=True)
    print(pretrain(config, options.directory))
    return 0


def spot(options: Namespace) -> int:
    """Wait for a cloud's notice and pass it on to Ray."""
    from metagen_ray.spot import watch

    watch(options.cloud, options.metadata)
    return 0
