"""The app under its client at full load for a long time, with more adapters than it can hold: errors, and memory."""

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from scipy.stats import theilslopes

from metagen_ray.serving.app import App, ServingSpec, deploy, undeploy
from metagen_ray.serving.auth import read_token
from metagen_ray.serving.client import Client, Limits
from tests.serving.conftest import put_adapter
from tests.tiny import make_tiny_model

ADAPTERS, IN_MEMORY, IN_BATCH = 24, 8, 4
PROMPTS = 128  # of a request
AT_ONCE = 3
WARM_S = 120.0  # caches and arenas fill
LOOK_S = 10.0
NAMES = ("VLLM::EngineCore", "ServeReplica:metagen:engine", "ServeReplica:metagen:ingress", "ProxyActor")


def soak(seconds: float, prompts: int) -> Mapping[str, object]:
    """Ask for so long and until so many prompts are answered; figures. Raises what the client raises."""
    with tempfile.TemporaryDirectory(prefix="mk", dir="/tmp", ignore_cleanup_errors=True) as folder:
        room = Path(folder)
        model = make_tiny_model(room / "model", "digits")
        keys = [put_adapter(room / "store", model, seed) for seed in range(ADAPTERS)]
        environment = {"env_vars": {"PYTHONPATH": os.getcwd()}}
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=f"{folder}/r", runtime_env=environment)
        try:
            spec = ServingSpec(
                str(model), "tiny", str(room / "store"), adapters_in_batch=IN_BATCH, adapters_in_memory=IN_MEMORY
            )
            return asyncio.run(_load(deploy(spec, room / "token"), keys, seconds, prompts))
        finally:
            undeploy()
            ray.shutdown()


async def _load(app: App, keys: list[str], seconds: float, prompts: int) -> dict[str, object]:
    rng, began, asked, answers = np.random.default_rng(0), time.monotonic(), 0, 0
    memory: dict[str, list[tuple[float, float]]] = {}
    limits = Limits(prompts_per_request=PROMPTS, in_flight=AT_ONCE)

    def goes_on() -> bool:
        return time.monotonic() - began < seconds or asked < prompts

    async def ask(client: Client) -> None:
        nonlocal asked, answers
        while goes_on():
            model = f"{app.model_name}:{keys[rng.integers(len(keys))]}"
            batch = [rng.integers(10, 290, rng.integers(8, 120)).tolist() for _ in range(PROMPTS)]
            found = await client.complete(model, batch, n=2, max_tokens=8)
            asked, answers = asked + len(batch), answers + sum(map(len, found))

    async def look() -> None:
        while goes_on():
            for name, mib in _memory().items():
                memory.setdefault(name, []).append((time.monotonic() - began, mib))
            await asyncio.sleep(LOOK_S)

    async with Client(app.url, read_token(app.token_file), limits) as client:
        await asyncio.gather(look(), *(ask(client) for _ in range(AT_ONCE)))
    spent = time.monotonic() - began
    return {
        "seconds": round(spent),
        "prompts": asked,
        "answers": answers,
        "repeated": dict(client.retried),  # what is not repaired by asking again would have ended this
        "answers_per_s": round(answers / spent),
        "mib_at_end": {name: round(found[-1][1]) for name, found in memory.items()},
        "mib_an_hour_at_most": {name: _slope(found) for name, found in memory.items()},
    }


def _memory() -> dict[str, float]:
    """Proportional set size by process, MiB."""
    found: dict[str, float] = {}
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        for name in NAMES:
            if name in command:
                try:
                    found[name] = found.get(name, 0.0) + process.memory_full_info().pss / 2**20
                except psutil.Error:
                    continue
    return found


def _slope(found: list[tuple[float, float]]) -> float | None:
    """Upper end of the 95 % interval of the slope, MiB an hour (Theil-Sen), once warm."""
    warm = [(t, mib) for t, mib in found if t > WARM_S]
    if len(warm) < 10:
        return None
    seconds, mib = zip(*warm, strict=True)
    found_slope: Any = theilslopes(mib, seconds, 0.95)
    return round(3600 * float(found_slope.high_slope), 1)
