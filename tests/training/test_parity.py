"""Training against independent implementations: stock PEFT with padded batches and Hugging Face's loss, and TRL."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel, load_base
from metagen_ray.training.core import train
from metagen_ray.training.lora import LoraShape
from metagen_ray.training.plain import PlainEngine
from metagen_ray.training.product import Banked
from metagen_ray.training.rows import Tree, plain_row
from tests.tiny import make_tiny_model
from tests.training.peft_alone import largest_gap, orders, peft_weights, stock_peft, train_peft

SEED = 5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def random_rows(count: int, seed: int = 0) -> list[Tree]:
    """Plain rows of mixed lengths."""
    rng = np.random.default_rng(seed)
    return [
        plain_row(
            rng.integers(10, 300, rng.integers(3, 14)).tolist(),
            rng.integers(10, 300, rng.integers(1, 9)).tolist(),
        )
        for _ in range(count)
    ]


def engine_for(model_dir: Path, recipe: Recipe) -> PlainEngine:
    return PlainEngine(AdaptedModel(load_base(model_dir), [LoraShape.of(recipe)]))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(rank=4, alpha=8, lr=5e-3, epochs=3, batch_rows=8, clip=0.1),
        Recipe(
            rank=2,
            alpha=8,
            lr=5e-3,
            epochs=2,
            batch_rows=5,
            schedule="cosine",
            warmup_share=0.2,
            weight_decay=0.1,
        ),
        Recipe(
            rank=2,
            alpha=4,
            lr=5e-3,
            epochs=2,
            batch_rows=7,
            schedule="linear",
            targets=("q_proj", "down_proj"),
        ),
    ],
    ids=["constant-clipped", "cosine-warmup-decay", "linear-two-targets"],
)
def test_training_plain_rows_equals_stock_peft_on_padded_batches(
    model_dir: Path, tmp_path: Path, recipe: Recipe
) -> None:
    rows = random_rows(45)
    engine = engine_for(model_dir, recipe)
    peft = stock_peft(model_dir, engine.model.slots[0], tmp_path / "start", SEED)
    log = train(engine, rows, recipe, SEED)
    losses = train_peft(peft, rows, recipe, SEED)
    assert np.allclose(log.losses, losses, atol=1e-4)
    assert largest_gap(engine.adapter(), peft_weights(peft)) < 1e-4


def test_training_plain_rows_equals_trl(model_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    recipe = Recipe(rank=4, alpha=8, lr=3e-3, epochs=3, batch_rows=8, schedule="linear", warmup_share=0.1)
    rows = random_rows(48, seed=1)  # whole batches, as TRL is given the three epochs as one
    engine = engine_for(model_dir, recipe)
    peft = stock_peft(model_dir, engine.model.slots[0], tmp_path / "start", SEED)
    log = train(engine, rows, recipe, SEED)

    class SameOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    laid = [rows[i] for order in orders(SEED, len(rows), recipe.epochs) for i in order]
    data = Dataset.from_list(
        [
            {
                "input_ids": r.branches[0].prompt + r.branches[0].completion,
                "completion_mask": [0] * len(r.branches[0].prompt) + [1] * len(r.branches[0].completion),
            }
            for r in laid
        ]
    )
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        learning_rate=recipe.lr,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warmup_share,
        max_grad_norm=recipe.clip,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        completion_only_loss=True,
        disable_tqdm=True,
        gradient_checkpointing=False,
        max_length=None,
        shuffle_dataset=False,
    )
    trainer = SameOrder(model=peft, args=config, train_dataset=data)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(theirs) == len(log.losses) == 18
    assert np.allclose(log.losses, theirs, atol=1e-3)
    assert largest_gap(engine.adapter(), peft_weights(trainer.model)) < 1e-4


def test_adapter_files_load_in_peft_with_equal_logits(model_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(rank=4, alpha=8, lr=1e-2, epochs=1)
    engine = engine_for(model_dir, recipe)
    train(engine, random_rows(16), recipe, SEED)
    directory = tmp_path / "adapter"
    directory.mkdir()
    for name, data in engine.model.slots[0].files(engine.adapter()).items():
        (directory / name).write_bytes(data)
    assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] == "LORA"
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, directory)
    ids = torch.arange(20, 40)[None]
    engine.model.eval()
    engine.model.bank.lend(list(engine.model.flats), torch.float32, Banked([(0, 0, 20)], [2.0], False))
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, engine.model.base(ids).logits, atol=1e-5)
