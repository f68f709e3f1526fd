import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metagen_ray.serving.app import App, ServingSpec, deploy, undeploy
from tests.tiny import make_tiny_model

ADAPTERS = 3
MERGED = ADAPTERS + 1  # made by another stage, and of a rank that the engine's LoRA does not take
UNMERGEABLE = MERGED + 1  # says of itself that it is more than a sum
UNASKED = UNMERGEABLE + 1  # loaded by no test but that of an engine's death
SLOTS = 2  # fewer than adapters: slots are taken over and given back


@dataclass(frozen=True)
class Served:
    """The app under test, its model directory, and the keys of its adapters."""

    app: App
    spec: ServingSpec
    model_dir: Path
    keys: list[str]

    def adapter(self, n: int) -> str:
        return f"{self.app.model_name}:{self.keys[n]}"


@pytest.fixture(scope="package")  # other rooms start a Ray of their own
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One Ray, one app of a tiny model that splits numbers, three adapters and one of too high a rank in a store."""
    import ray

    root = tmp_path_factory.mktemp("served")
    model_dir = make_tiny_model(root / "model", "digits")
    keys = [put_adapter(root / "store", model_dir, seed) for seed in range(ADAPTERS)]
    keys.append(put_adapter(root / "store", model_dir, seed=ADAPTERS, rank=16))
    keys.append(put_adapter(root / "store", model_dir, seed=MERGED, rank=16, stage="meta_sft"))
    keys.append(put_adapter(root / "store", model_dir, seed=UNMERGEABLE, stage="meta_sft", use_dora=True))
    keys.append(put_adapter(root / "store", model_dir, seed=UNASKED))
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_dir:
        runtime_env = {"env_vars": {"PYTHONPATH": os.getcwd()}}
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=ray_dir, runtime_env=runtime_env)
        spec = ServingSpec(str(model_dir), "tiny", str(root / "store"), adapters_in_batch=SLOTS, max_model_len=256)
        try:
            yield Served(deploy(spec, root / "token"), spec, model_dir, keys)
        finally:
            undeploy()
            ray.shutdown()


def put_adapter(
    store_root: Path, model_dir: Path, seed: int, rank: int = 4, stage: str = "object_sft", **config: object
) -> str:
    """Commit a random PEFT adapter that changes answers visibly, with a changed configuration; returns its key."""
    from metagen_ray.store import content_key, open_store

    directory = store_root.parent / f"adapter-{seed}"
    random_adapter(model_dir, seed, rank).save_pretrained(directory)
    written = directory / "adapter_config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | config))
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".json", ".safetensors")}
    key = content_key({"adapter": seed})
    open_store(str(store_root)).put_files(stage, key, files, {"seed": seed})
    return key


def random_adapter(model_dir: Path, seed: int, rank: int = 4) -> Any:
    """The tiny model under PEFT, with LoRA weights drawn from `seed`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0.0, 0.2, generator=generator)
    return adapted.eval()
