"""metagen: the only place that parses arguments. Owns the commands' arguments and exit codes.

Exit codes: 0 done · 1 unexpected · 2 wrong input · 3 store · 4 machine or cluster · 5 a stage failed · 6 done but for
some shards · 7 another driver holds the run · 130 interrupted · 141 nobody reads what it prints any more (`| head`) ·
143 ended by SIGTERM.
"""

import argparse
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from metagen_ray import commands
from metagen_ray.ending import leave_without_destructors
from metagen_ray.errors import Terminated, UserError
from metagen_ray.progress import as_json, tell
from metagen_ray.study import preset_names

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command as this process, which ends with its exit code whatever a library's threads do meanwhile."""
    codes: list[int] = []
    leave_without_destructors(lambda: codes[0] if codes else None)
    codes.append(main(arguments))
    sys.exit(codes[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options = _parser().parse_args(arguments)
    earlier = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = options.command(options) or 0
        sys.stdout.flush()  # a reader that has left is noticed here at the latest
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 128 + signal.SIGPIPE
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


def _reader_left() -> bool:
    """Whether standard output is a pipe whose other end is closed."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in pipe.poll(0))


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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("plan", commands.plan, "show stages, shards and tokens: what is done, what is missing and why"),
        ("run", commands.run, "run a study; what is done already is not done again"),
    ):
        sub = subparsers.add_parser(name, help=text, description=text)
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
    _add_submit(subparsers)
    _add_doctor(subparsers)
    _add_lasting(subparsers)
    _add_spot(subparsers)
    for name, command, text in (
        ("status", commands.status, "how far a run is"),
        ("report", commands.report, "write a run's report again from its committed answers"),
    ):
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.add_argument("run", help="name of the run, as `metagen run` prints it, or a preset or YAML file")
        sub.add_argument("--store", default="runs", help="root of the store (default: runs)")
        sub.set_defaults(command=command)
    text = "pool finished runs that differ in `seed` alone"
    sub = subparsers.add_parser("combine", help=text, description=text)
    sub.add_argument("runs", nargs="+", help="names of the runs")
    sub.add_argument("--store", default="runs", help="root of the store (default: runs)")
    sub.set_defaults(command=commands.combine)
    _add_score(subparsers)
    _add_lab(subparsers)
    return parser


def _add_submit(subparsers) -> None:
    text = "run a study as a job of a cluster and follow it; a study that runs there already is followed"
    sub = subparsers.add_parser("submit", help=text, description=text)
    sub.add_argument("study", help=f"a preset ({', '.join(preset_names())}) or a YAML file")
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    sub.add_argument("--address", default=address, help=f"URL of the head's job API (default: {address})")
    sub.add_argument("--python", default="python", help="Python on the head (default: python)")
    sub.add_argument("--ship-code", action="store_true", help="send this package along, for nodes without it")
    sub.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="for the job; no secrets")
    sub.add_argument("--no-follow", dest="follow", action="store_false", help="return once the job is submitted")
    sub.set_defaults(command=commands.submit)


def _add_lasting(subparsers) -> None:
    """What outlives a command, and its end."""
    text = "bring the app of a study up on a running cluster and leave it there"
    sub = subparsers.add_parser("serve", help=text, description=text)
    sub.add_argument("study", help=f"a preset ({', '.join(preset_names())}) or a YAML file")
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    sub.add_argument("--address", help="Ray cluster (default: the one of this machine or job)")
    sub.set_defaults(command=commands.serve)
    text = "end what outlives a job on a cluster: the app and long-lived actors"
    sub = subparsers.add_parser("down", help=text, description=text)
    sub.add_argument("--address", help="Ray cluster (default: the one of this machine or job)")
    sub.set_defaults(command=commands.down)


def _add_spot(subparsers) -> None:
    text = "wait for the notice that the cloud takes this spot machine back, and have Ray drain the node"
    sub = subparsers.add_parser("spot", help=text, description=text)
    sub.add_argument("cloud", help="aws or gcp")
    sub.add_argument("--metadata", default="", help="address of the metadata service (default: the cloud's own)")
    sub.set_defaults(command=commands.spot)


def _add_doctor(subparsers) -> None:
    text = "look at every node of a cluster: versions, store, token, ports, GPUs, disk; say what to change"
    sub = subparsers.add_parser("doctor", help=text, description=text)
    sub.add_argument("study", nargs="?", default="pocket", help="whose store and resources are tried (default: pocket)")
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    sub.add_argument("--address", help="Ray cluster to look at; a local one is started otherwise")
    sub.add_argument("--json", action="store_true", help="print everything that was found as JSON")
    sub.set_defaults(command=commands.doctor)


def _add_score(subparsers) -> None:
    text = "log-likelihoods of given answers after examples and a question"
    sub = subparsers.add_parser("score", help=text, description=text)
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
    sub.set_defaults(command=commands.score)


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


def _add_lab(subparsers) -> None:
    text = "make a pocket base model from nothing"
    lab = subparsers.add_parser("lab", help="the pocket world").add_subparsers(required=True, metavar="COMMAND")
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
    sub.set_defaults(command=commands.pretrain)
    text = "how far a character carries into other domains of a finished run, by block"
    sub = lab.add_parser("carry", help=text, description=text)
    sub.add_argument("run", help="name of the run")
    sub.add_argument("--store", default="runs", help="root of the store (default: runs)")
    sub.set_defaults(command=commands.carry)


if __name__ == "__main__":
    run()
