"""Throughput of the app: answers and tokens per second, by prompt length, samples and prompts per request.

    python -m benchmarks.serving [--model DIR] [--prompts 4000] [--replicas 1] [--results FILE]

Prompts come in groups of 20 that share all but their last 20 tokens; 8 tokens an answer. The adapter is random, of
rank 8 on all linear layers. Each figure is also given per CPU-second of all serving processes, which another load on
the machine changes little. Appends one JSON line per figure.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks.measure import append_line, commit, machine
from metagen_ray.base_model import find_base
from metagen_ray.serving.app import App, ServingSpec, deploy, undeploy
from metagen_ray.serving.auth import read_token
from metagen_ray.serving.client import Client, Limits
from metagen_ray.store import content_key, open_store

GROUP, OWN_TOKENS, ANSWER_TOKENS = 20, 20, 8


def main() -> None:
    """Deploy, measure, take down."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp", ignore_cleanup_errors=True) as room:
        key = random_adapter(options.model, Path(room) / "store")
        env = {"env_vars": {"PYTHONPATH": os.getcwd()}}
        ray.init(include_dashboard=False, _temp_dir=room, runtime_env=env, log_to_driver=False)
        spec = ServingSpec(
            options.model,
            "base",
            f"{room}/store",
            replicas=options.replicas,
            cpus_per_replica=1 / options.replicas,
        )
        started = time.time()
        app = deploy(spec, Path(room) / "token")
        report(options.results, {"row": "deploy", "seconds": round(time.time() - started, 1)})
        try:
            asyncio.run(measure(app, f"base:{key}", options))
        finally:
            undeploy()
            ray.shutdown()


async def measure(app: App, adapter: str, options: argparse.Namespace) -> None:
    """Every combination once, after a warm-up."""
    rng = random.Random(0)
    for model in ("base", adapter):
        await one(app, model, prompts(rng, 64, 0), 2, 64)
    for model in ("base", adapter):
        for shared in (0, 200):
            for samples in (2, 8):
                for size in (64, 128, 256):
                    asked = prompts(rng, options.prompts, shared)
                    row = {
                        "row": "complete",
                        "model": "adapter" if ":" in model else "base",
                        "prompt_tokens": shared + OWN_TOKENS,
                    }
                    figures = await one(app, model, asked, samples, size)
                    report(options.results, row | {"n": samples, "request": size} | figures)
    asked = prompts(rng, options.prompts, 60)
    figures = await one(app, "base", asked, 0, 64)
    report(options.results, {"row": "next_token_logprobs", "candidates": 101, "prompt_tokens": 80} | figures)


async def one(app: App, model: str, asked: list[list[int]], samples: int, size: int) -> dict[str, Any]:
    """Ask once; no samples means log-probabilities of 101 candidates."""
    async with Client(app.url, read_token(app.token_file), Limits(prompts_per_request=size)) as client:
        cpu, wall = serving_cpu_s(), time.perf_counter()
        if samples:
            found = await client.complete(model, asked, n=samples, max_tokens=ANSWER_TOKENS)
            answers, tokens = len(asked) * samples, sum(len(a.tokens or ()) for group in found for a in group)
        else:
            await client.next_token_logprobs(model, asked, range(300, 401))
            answers = tokens = len(asked)
        wall, cpu = time.perf_counter() - wall, serving_cpu_s() - cpu
    return {
        "answers_per_s": round(answers / wall),
        "tokens_per_s": round(tokens / wall),
        "answers_per_cpu_s": round(answers / cpu) if cpu else None,
    }


def prompts(rng: random.Random, count: int, shared: int) -> list[list[int]]:
    """Prompts in groups that share their beginning; word tokens alone."""

    def words(n: int) -> list[int]:
        return [rng.randrange(300, 1500) for _ in range(n)]

    beginnings = [words(shared) for _ in range(-(-count // GROUP))]
    return [[*beginnings[i // GROUP], *words(OWN_TOKENS)] for i in range(count)]


def serving_cpu_s() -> float:
    """CPU seconds of this process and all Ray processes it started."""
    me = psutil.Process()
    used = [p.cpu_times() for p in (me, *me.children(recursive=True)) if p.is_running()]
    return sum(t.user + t.system for t in used)


def random_adapter(model_dir: str, store: Path) -> str:
    """Commit a random LoRA of the model; returns its key."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), lora)
    model.save_pretrained(str(store.parent / "adapter"))
    files = {
        p.name: p.read_bytes() for p in (store.parent / "adapter").iterdir() if p.suffix in (".json", ".safetensors")
    }
    key = content_key({"benchmark": "serving"})
    open_store(str(store)).put_files("object_sft", key, files, {})
    return key


def report(results: Path, row: dict[str, Any]) -> None:
    """Print a row and append it with commit and date."""
    line = row | {"machine": machine(), "commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    print(json.dumps(line), flush=True)
    append_line(results, line)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab:informative", help="directory of a model, or lab:NAME")
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/serving.jsonl"))
    options = parser.parse_args()
    options.model = str(find_base(options.model).directory)
    return options


if __name__ == "__main__":
    main()
