"""The engines on a CUDA device: bf16 base, fp32 adapter, close to the CPU's fp32. Knows nothing of speed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel, load_base
from metagen_ray.training.core import Engine, train
from metagen_ray.training.lora import LoraShape
from metagen_ray.training.plain import PlainEngine
from metagen_ray.training.rows import Branch, Tree, plain_row
from metagen_ray.training.score import score
from tests.tiny import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RECIPE = Recipe(rank=4, alpha=8, lr=3e-3, epochs=3, batch_rows=8)


def mixed_trees() -> list[Tree]:
    rng = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(10, 300, rng.integers(low, high)).tolist()

    rows = [plain_row(tokens(2, 9), tokens(1, 9)) for _ in range(24)]
    return [
        *rows,
        *(Tree(tokens(20, 40), tuple(Branch(tokens(2, 8), tokens(1, 6)) for _ in range(8))) for _ in range(3)),
    ]


@pytest.mark.parametrize("kind", ["plain", "deepspeed"])
def test_cuda_engine_trains_close_to_the_cpu(tmp_path: Path, kind: str) -> None:
    directory = make_tiny_model(tmp_path)
    cpu = PlainEngine(AdaptedModel(load_base(directory), [LoraShape.of(RECIPE)]))
    model = AdaptedModel(load_base(directory, "cuda"), [LoraShape.of(RECIPE)], "cuda")
    engine: Engine = PlainEngine(model)
    if kind == "deepspeed":
        from metagen_ray.training.zero import DeepSpeedEngine, start_alone

        start_alone()
        engine = DeepSpeedEngine(model, 1)
    assert np.allclose(
        train(engine, mixed_trees(), RECIPE, 1).losses, train(cpu, mixed_trees(), RECIPE, 1).losses, rtol=0.02
    )
    assert model.flats[0].dtype == torch.float32 and all(t.dtype == torch.float32 for t in engine.adapter().values())
    ours, theirs = (np.concatenate(score(m, mixed_trees())) for m in (model, cpu.model))
    assert np.abs(ours - theirs).mean() < 0.1
