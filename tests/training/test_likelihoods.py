"""Bulk log-likelihoods against one row at a time in transformers: values, order, adapters in PEFT's format, errors."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from metagen_ray.errors import InputError
from metagen_ray.training.base import freeze
from metagen_ray.training.likelihoods import Query, load_model, score_answers, with_adapter
from tests.tiny import make_tiny_model

Change = Callable[[dict], Any]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random PEFT adapter on some of the layers, strong enough to change every number."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0.0, 0.3, generator=generator)
    adapted.save_pretrained(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".json", ".safetensors")}


def queries(seed: int = 0) -> list[Query]:
    """Prefixes with many questions and with few, empty ones, equal rows, answers right after a prefix; all shuffled."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> list[int]:
        return [rng.randrange(5, 250) for _ in range(rng.randint(low, high))]

    long, short, one = text(60, 60), text(9, 9), text(1, 1)
    found = [Query(long, text(3, 12), tuple(text(1, 9) for _ in range(rng.randint(1, 5)))) for _ in range(40)]
    found += [Query(short, text(1, 6), (text(2, 4), text(2, 4))) for _ in range(3)]
    found += [Query([], text(2, 8), (text(1, 5), text(1, 5))) for _ in range(6)]
    found += [Query(long, [], (text(2, 2), text(3, 3))), Query(one, text(3, 3), (text(4, 4),))]
    found += [Query(one, text(20, 20), (text(20, 20),)) for _ in range(20)]  # a prefix of one token in many packs
    found += [found[0], Query(long, found[1].question, found[1].answers[::-1])]
    rng.shuffle(found)
    return found


@torch.inference_mode()
def one_by_one(model: Any, asked: list[Query]) -> list[list[float]]:
    """Each row alone, the sum of the log-softmax at the answer's tokens."""

    def row(query: Query, answer: list[int]) -> float:
        context = [*query.prefix, *query.question]
        logits = model(torch.tensor([[*context, *answer]])).logits[0].double()
        at = F.log_softmax(logits, -1)[len(context) - 1 : -1]
        return at.gather(1, torch.tensor(answer)[:, None]).sum().item()

    return [[row(query, answer) for answer in query.answers] for query in asked]


def worst(ours: list[list[float]], theirs: list[list[float]]) -> float:
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    return max(abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("pack_tokens", [4096, 512, 64])
def test_likelihoods_of_the_base_equal_one_row_at_a_time(model_dir: Path, pack_tokens: int):
    model, asked = load_model(model_dir), queries()
    model.pack_tokens = pack_tokens
    theirs = one_by_one(AutoModelForCausalLM.from_pretrained(model_dir).eval(), asked)
    assert worst(score_answers(model, asked), theirs) < 1e-4


def test_likelihoods_of_an_adapter_equal_stock_peft(model_dir: Path, adapter_dir: Path):
    model, asked = load_model(model_dir, files(adapter_dir)), queries(1)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    bare = one_by_one(base.eval(), asked)
    theirs = one_by_one(PeftModel.from_pretrained(base, str(adapter_dir)).eval(), asked)
    ours = score_answers(model, asked)
    assert worst(ours, theirs) < 1e-4 and worst(ours, bare) > 0.1


def test_likelihoods_read_a_long_prefix_once_and_equal_rows_once(model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_model(model_dir)
    model.pack_tokens = 64
    read: list[int] = []

    def counted(module: Any, arguments: Any, inputs: dict) -> None:
        read.append(inputs["input_ids"].numel())

    model.base.register_forward_pre_hook(counted, with_kwargs=True)
    prefix = [7] * 100
    asked = [Query(prefix, [20 + n, 3], ([5, 6], [6, 7, 8])) for n in range(30)]
    score_answers(model, asked * 3)
    # The prefix but its last token; then for each question that token, the question, and two answers but their last.
    assert sum(read) == 99 + 30 * (1 + 2 + 1 + 2)


def test_likelihoods_leave_a_training_model_training(model_dir: Path):
    model = load_model(model_dir).train()
    score_answers(model, [Query([1, 2, 3] * 300, [4], ([5],))])
    assert model.training


def test_likelihoods_of_a_sliding_window_model_are_exact_row_by_row():
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    asked = queries(2)
    theirs = one_by_one(base.eval(), asked)
    model = with_adapter(freeze(base), None, "cpu")
    assert model.not_full and worst(score_answers(model, asked), theirs) < 1e-4


@pytest.mark.parametrize("bad", [Query([1], [2], ([],)), Query([], [], ([3],))])
def test_likelihoods_of_nothing_or_after_nothing_are_refused(model_dir: Path, bad: Query):
    with pytest.raises(ValueError, match="empty completion or nothing before it"):
        score_answers(load_model(model_dir), [bad])


def changed(given: dict[str, bytes], **settings: Any) -> dict[str, bytes]:
    config = json.loads(given["adapter_config.json"]) | settings
    return {**given, "adapter_config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: changed(f, r=8), "does not fit this model"),
        (lambda f: changed(f, use_dora=True), "use_dora"),
        (lambda f: changed(f, rank_pattern={"q_proj": 2}), "rank_pattern"),
        (lambda f: changed(f, peft_type="IA3"), "IA3"),
        (lambda f: {**f, "adapter_config.json": b"{"}, "no adapter_config.json of a LoRA"),
        (lambda f: {k: v for k, v in f.items() if k != "adapter_config.json"}, "no adapter_config.json"),
        (lambda f: {k: v for k, v in f.items() if k != "adapter_model.safetensors"}, "no adapter_model.safetensors"),
        (lambda f: {**f, "adapter_model.safetensors": b"\x00" * 40}, "cannot be read"),
    ],
)
def test_adapter_that_does_not_fit_is_refused(model_dir: Path, adapter_dir: Path, spoil: Any, words: str):
    with pytest.raises(InputError, match=words):
        load_model(model_dir, spoil(files(adapter_dir)))
