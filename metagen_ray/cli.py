"""metagen: the only place that parses arguments. Owns commands, their output and exit codes; computes nothing itself.

Exit codes: 0 done · 1 unexpected · 2 wrong input · 3 store · 4 machine or cluster · 5 a stage failed · 6 done but for
some shards · 7 another driver holds the run · 130 interrupted · 143 ended by SIGTERM.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metagen_ray.errors import InputError, MachineError, Terminated, UserError
from metagen_ray.progress import as_json, tell
from metagen_ray.study import Study, load_study, parse_yaml, preset_names, study_from

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options = _parser().parse_args(arguments)
    earlier = signal.signal(signal.SIGTERM, _terminate)
    try:
        return options.command(options) or 0
    except UserError as error:
        _print_error(str(error), error.exit_code)
        return error.exit_code
    except Terminated as ended:
        _print_error("ended by SIGTERM; what was done is kept, run the same command to go on", ended.exit_code)
        sys.stdout.flush()
        os._exit(ended.exit_code)  # threads that still wait for a cluster would hold the process
    except KeyboardInterrupt:
        _print_error("interrupted; run the same command again to go on", 130)
        return 130
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _print_error(message: str, exit_code: int) -> None:
    if as_json():
        tell(message, exit_code=exit_code)
    else:
        print(f"metagen: {message}", file=sys.stderr)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what ends in order is not interrupted
    raise Terminated


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metagen", description="Predict what a fine-tune will do before it is run.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("plan", _plan, "show stages, shards and tokens: what is done, what is missing and why"),
        ("run", _run, "run a study; what is done already is not done again"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("study", help=f"a preset ({', '.join(preset_names())}) or a YAML file")
        sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
        sub.set_defaults(command=command)
        if name == "plan":
            _add_cost(sub)
        if name == "run":
            sub.add_argument("--address", help="Ray cluster to join; a local one is started otherwise")
            sub.add_argument(
                "--only", action="append", default=[], metavar="STEP", help="do this step alone; may be repeated"
            )
            sub.add_argument("--repair", action="store_true", help="drop damaged shards and compute them again")
    _add_submit(commands)
    _add_doctor(commands)
    _add_lasting(commands)
    for name, command, text in (
        ("status", _status, "how far a run is"),
        ("report", _report, "write a run's report again from its committed answers"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("run", help="name of the run, as `metagen run` prints it, or a preset or YAML file")
        sub.add_argument("--store", default="runs", help="root of the store (default: runs)")
        sub.set_defaults(command=command)
    text = "pool finished runs that differ in `seed` alone"
    sub = commands.add_parser("combine", help=text, description=text)
    sub.add_argument("runs", nargs="+", help="names of the runs")
    sub.add_argument("--store", default="runs", help="root of the store (default: runs)")
    sub.set_defaults(command=_combine)
    _add_score(commands)
    _add_lab(commands)
    return parser


def _add_submit(commands) -> None:
    text = "run a study as a job of a cluster and follow it; a study that runs there already is followed"
    sub = commands.add_parser("submit", help=text, description=text)
    sub.add_argument("study", help=f"a preset ({', '.join(preset_names())}) or a YAML file")
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    sub.add_argument("--address", default=address, help=f"URL of the head's job API (default: {address})")
    sub.add_argument("--python", default="python", help="Python on the head (default: python)")
    sub.add_argument("--ship-code", action="store_true", help="send this package along, for nodes without it")
    sub.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="for the job; no secrets")
    sub.add_argument("--no-follow", dest="follow", action="store_false", help="return once the job is submitted")
    sub.set_defaults(command=_submit)


def _add_lasting(commands) -> None:
    """What outlives a command, and its end."""
    text = "bring the app of a study up on a running cluster and leave it there"
    sub = commands.add_parser("serve", help=text, description=text)
    sub.add_argument("study", help=f"a preset ({', '.join(preset_names())}) or a YAML file")
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    sub.add_argument("--address", help="Ray cluster (default: the one of this machine or job)")
    sub.set_defaults(command=_serve)
    text = "end what outlives a job on a cluster: the app and long-lived actors"
    sub = commands.add_parser("down", help=text, description=text)
    sub.add_argument("--address", help="Ray cluster (default: the one of this machine or job)")
    sub.set_defaults(command=_down)


def _add_doctor(commands) -> None:
    text = "look at every node of a cluster: versions, store, token, ports, GPUs, disk; say what to change"
    sub = commands.add_parser("doctor", help=text, description=text)
    sub.add_argument("study", nargs="?", default="pocket", help="whose store and resources are tried (default: pocket)")
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    sub.add_argument("--address", help="Ray cluster to look at; a local one is started otherwise")
    sub.add_argument("--json", action="store_true", help="print everything that was found as JSON")
    sub.set_defaults(command=_doctor)


def _add_score(commands) -> None:
    text = "log-likelihoods of given answers after examples and a question"
    sub = commands.add_parser("score", help=text, description=text)
    sub.add_argument("model", help="a preset or YAML file, whose base it takes, `lab:NAME`, or a model directory")
    sub.add_argument(
        "file",
        type=Path,
        help='JSON lines: {"examples": [{"question", "answer"}, ...], "question", "answers": [...]}, or plain text '
        'as "prefix" in the place of examples',
    )
    sub.add_argument("--adapter", help="a directory of a PEFT adapter, or the key of an adapter in the store")
    sub.add_argument("--store", help="root of the store (default: the study's, or runs)")
    sub.add_argument("--out", type=Path, help="file for the result; printed otherwise")
    sub.set_defaults(command=_score)


def _add_cost(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--cost", action="store_true", help="also FLOPs, bytes, GPU-hours and money of what is missing")
    cost = sub.add_argument_group("with --cost")
    cost.add_argument("--gpu", help="type of GPU, by name: H100 (default), H200, A100, B200, L40S, L4")
    cost.add_argument("--gpus", type=int, help="how many GPUs (default: 1)")
    cost.add_argument("--price", type=float, help="USD an hour for one GPU (default: a list price)")
    cost.add_argument("--utilisation", type=float, help="share of peak FLOPs in training (default: 0.4)")
    cost.add_argument("--prefill-utilisation", type=float, help="share of peak FLOPs in reading prompts (default: 0.3)")
    cost.add_argument(
        "--bandwidth-utilisation", type=float, help="share of the memory's bandwidth in writing (default: 0.6)"
    )


def _add_lab(commands) -> None:
    text = "make a pocket base model from nothing"
    lab = commands.add_parser("lab", help="the pocket world").add_subparsers(required=True, metavar="COMMAND")
    sub = lab.add_parser("pretrain", help=text, description=text)
    sub.add_argument(
        "directory", type=Path, help="where weights, tokenizer and record go; an interrupted run goes on there"
    )
    sub.add_argument(
        "--rho", type=float, required=True, help="share of threads by one author: 0.5 informative, 0 blind"
    )
    sub.add_argument("--steps", type=int, help="optimizer steps (default: 7000)")
    sub.add_argument("--judge-steps", type=int, help="further steps, mostly on the judge's documents (default: 1500)")
    sub.add_argument("--rows", type=int, help="rows of one step (default: 12)")
    sub.add_argument("--length", type=int, help="tokens of a row (default: 384)")
    sub.add_argument("--lr", type=float, help="peak learning rate (default: 2.5e-3)")
    sub.add_argument("--seed", type=int)
    sub.add_argument("--hidden", type=int, help="width of the model")
    sub.add_argument("--layers", type=int)
    sub.add_argument(
        "--compile", action="store_true", default=None, help="compile the model; needs a C++ compiler, 1.5x faster"
    )
    sub.set_defaults(command=_pretrain)
    text = "how far a character carries into other domains of a finished run, by block"
    sub = lab.add_parser("carry", help=text, description=text)
    sub.add_argument("run", help="name of the run")
    sub.add_argument("--store", default="runs", help="root of the store (default: runs)")
    sub.set_defaults(command=_carry)


def _plan(options: argparse.Namespace) -> int:
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


def _cost_settings(options: argparse.Namespace) -> dict[str, Any]:
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


def _run(options: argparse.Namespace) -> int:
    from metagen_ray.stages.driver import run_study

    study = load_study(options.study, options.overrides)
    run_study(study, options.address, options.repair, options.only)
    return 0


def _serve(options: argparse.Namespace) -> int:
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


def _down(options: argparse.Namespace) -> int:
    from metagen_ray import cluster

    cluster.reach(options.address or "auto")
    gone = cluster.take_down()
    print("\n".join(gone) if gone else "nothing of metagen was left")
    return 0


def _submit(options: argparse.Namespace) -> int:
    from metagen_ray.submit import Job, parse_env, submit

    job = Job(options.python, options.ship_code, parse_env(options.env))
    return submit(load_study(options.study, options.overrides), options.address, job, options.follow)


def _doctor(options: argparse.Namespace) -> int:
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


def _status(options: argparse.Namespace) -> int:
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


def _report(options: argparse.Namespace) -> int:
    from metagen_ray.stages.driver import versions
    from metagen_ray.stages.report import write_study_report

    plan = _plan_of(options.run, options.store)
    _require_finished(plan)
    write_study_report(plan, versions(), {})
    return 0


def _combine(options: argparse.Namespace) -> int:
    from metagen_ray.stages.combine import combine_runs

    plans = [_plan_of(run, options.store) for run in options.runs]
    for plan in plans:
        _require_finished(plan)
    combine_runs(plans)
    return 0


def _score(options: argparse.Namespace) -> int:
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


def _carry(options: argparse.Namespace) -> int:
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


def _pretrain(options: argparse.Namespace) -> int:
    from metagen_ray.lab.pretrain import PretrainConfig, pretrain

    names = ("rho", "steps", "judge_steps", "rows", "length", "lr", "seed", "hidden", "layers", "compile")
    chosen = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    config = PretrainConfig(**chosen)
    options.directory.mkdir(parents=True, exist_ok=True)
    print(pretrain(config, options.directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
