"""Adapters from the store to a directory that vLLM reads. Owns the names; knows no engine.

A model is asked for as "<base>:<key>", the key being the adapter's content key in the pool. vLLM's prefix cache
knows an adapter by its name alone; a content key never names two different adapters. The stage that made an adapter
says how it is served: those of `merged_stages` are asked by everyone and become weights of their own.
"""

import asyncio
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig, LLMConfig
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader

from metagen_ray.errors import StoreError
from metagen_ray.scratch import Scratch
from metagen_ray.serving.merge import is_finite
from metagen_ray.store import join_store

KEY = re.compile(r"[0-9a-f]{64}")


class AdapterLoader(LoraModelLoader):
    """Fetches an adapter's files once per replica, verified by digest."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._directory = Scratch("adapters")
        self._numbers = itertools.count(1)

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> DiskMultiplexConfig:
        """Fetch the adapter; 404 where the store has none of that key."""
        key = key_of(lora_model_id)
        directory = Path(self._directory.name) / key
        root, stages = llm_config.experimental_configs["adapters"]
        await asyncio.to_thread(fetch_adapter, root, stages, key, directory)
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(directory),
            lora_assigned_int_id=next(self._numbers),
        )


def key_of(model: str) -> str:
    """The adapter's key in a model's name; HTTPException 404 where it is none."""
    key = model.partition(":")[2]
    if not KEY.fullmatch(key):
        raise HTTPException(404, f"{model}: an adapter is named by the 64 hex digits of its key")
    return key


def stage_of(root: str, stages: Sequence[str], key: str) -> str:
    """The stage that holds an adapter; HTTPException 404 where none does."""
    store = join_store(root)
    stage = next((stage for stage in stages if store.has(stage, key)), None)
    if stage is None:
        raise HTTPException(404, f"no adapter {key} in {root} ({', '.join(stages)}); train it first")
    return stage


def fetch_adapter(root: str, stages: Sequence[str], key: str, directory: Path) -> None:
    """Write the adapter's files into `directory`; HTTPException 404 where no stage has the key."""
    stage = stage_of(root, stages, key)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        join_store(root).fetch_files(stage, key, directory)
    except StoreError as error:
        raise HTTPException(424, str(error)) from error
    if not is_finite(directory):
        raise HTTPException(400, f"adapter {key} has weights that are not finite; train it again with a lower rate")
