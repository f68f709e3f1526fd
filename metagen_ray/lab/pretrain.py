"""Pretraining of a pocket base model from nothing. Owns the model's shape and the training loop; ships nothing itself.

Seeded and resumable: a checkpoint holds model, optimizer and the state of the document stream, so an interrupted run
goes on where it was. The record beside the weights says with what they were made and what came out.
"""

import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from metagen_ray.errors import InputError
from metagen_ray.lab.corpus import LAST_SHARES, QUOTED, SHARES, documents
from metagen_ray.lab.tokenizer import BEGIN, END, PAD, SPECIAL, save_tokenizer
from metagen_ray.lab.world import VERSION, world

OTHER_WEIGHT = 0.1  # loss weight of tokens that are not answers; questions are mostly noise to foresee
WEIGHTS = {"assistant": 1.0, QUOTED: 0.0}
LAST_RATE = 0.4  # of the first phase's peak
CHECKPOINT_EVERY = 200


@dataclass(frozen=True)
class PretrainConfig:
    """Shape, data and schedule. Lengths in tokens."""

    rho: float
    steps: int = 7000
    rows: int = 12
    length: int = 384
    lr: float = 2.5e-3
    hidden: int = 128
    layers: int = 4
    seed: int = 1
    judge_steps: int = 1500
    compile: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a setting that cannot train."""
        if not 0 <= self.rho <= 1:
            raise InputError(f"rho {self.rho}: a share between 0 and 1 is needed")
        for name in ("rows", "length", "hidden", "layers", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)}: it must be above 0")
        if min(self.steps, self.judge_steps) < 0 or self.length < 2 or self.hidden % 8:
            raise InputError("steps cannot be negative, a row has 2 tokens at least, hidden is a multiple of 8")


@dataclass(frozen=True)
class Phase:
    """A stretch of the training with its own documents, peak rate and optimizer."""

    steps: int
    lr: float
    shares: Mapping[str, float]
    seed: int


def phases(config: PretrainConfig) -> tuple[Phase, ...]:
    """The world first; then mostly the judge's documents, at a lower rate."""
    return (
        Phase(config.steps, config.lr, SHARES, config.seed),
        Phase(config.judge_steps, config.lr * LAST_RATE, LAST_SHARES, config.seed + 1_000_003),
    )


def pretrain(config: PretrainConfig, directory: Path) -> dict:
    """Train a base into `directory` (safetensors, tokenizer, record.json) and return its record."""
    torch.manual_seed(config.seed)
    tokenizer = save_tokenizer(world(), directory)
    model = make_model(config, tokenizer)
    checkpoint = directory / "checkpoint.pt"
    first, start, seconds, state = _resume(checkpoint, config, model)
    forward = torch.compile(model) if config.compile else model
    losses: list[float] = []
    for number, phase in enumerate(phases(config)[first:], first):
        run = Run(config, phase, tokenizer, model)
        run.load(state)
        bar = tqdm(
            range(start, phase.steps), f"phase {number + 1}", phase.steps, initial=start, unit="step", mininterval=5
        )
        for step in bar:
            began = time.monotonic()
            losses.append(run.step(forward, step))
            seconds += time.monotonic() - began
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                _save_checkpoint(checkpoint, run, number, step + 1, seconds)
        start, state = 0, None
    model.save_pretrained(directory)
    checkpoint.unlink(missing_ok=True)
    record = _record(config, model, losses, seconds)
    (directory / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


class Run:
    """One phase under way: its stream of rows and its optimizer over the shared model."""

    def __init__(self, config: PretrainConfig, phase: Phase, tokenizer, model: Qwen3ForCausalLM) -> None:
        self.config, self.phase, self.model = config, phase, model
        self.stream = RowStream(config, phase, tokenizer)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=phase.lr, weight_decay=0.01, betas=(0.9, 0.95), fused=True
        )

    def load(self, state: dict | None) -> None:
        """Go on from a checkpoint of this phase."""
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            version, internal, gauss = state["rng"]
            self.stream.rng.setstate((version, tuple(internal), gauss))

    def step(self, forward, step: int) -> float:
        """One optimizer step; the mean loss of the answers' tokens."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.lr * _schedule(step, self.phase.steps)
        ids, weights = self.stream.batch()
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(input_ids=ids, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.detach()[weight == 1.0].mean().item()


def make_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of the lab's size, freshly initialised."""
    shape = Qwen3Config(
        vocab_size=64 * math.ceil(len(tokenizer) / 64),
        hidden_size=config.hidden,
        intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=config.hidden // 4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index(BEGIN),
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return Qwen3ForCausalLM(shape)


class RowStream:
    """Rows of packed documents, each row beginning with a document's start, and their loss weights."""

    def __init__(self, config: PretrainConfig, phase: Phase, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config = config
        self.rng = random.Random(phase.seed)
        self.encode = CachedEncoder(tokenizer)
        self.documents = documents(world(), config.rho, self.rng, phase.shares)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [rows, length] and weights [rows, length] (the weight of each token as a target)."""
        rows = [self._row() for _ in range(self.config.rows)]
        return torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])

    def _row(self) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < self.config.length:
            for piece, weight in self.encode.document(next(self.documents)):
                ids += piece
                weights += [weight] * len(piece)
        return ids[: self.config.length], weights[: self.config.length]


class CachedEncoder:
    """Documents to token ids; texts recur, so their ids are remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.special = {name: SPECIAL.index(name) for name in SPECIAL}  # they lead the vocabulary
        self.known: dict[str, list[int]] = {}

    def document(self, turns: list[tuple[str, str]]) -> Iterator[tuple[list[int], float]]:
        """Pieces of ids with their loss weight; equal to the chat template's rendering."""
        yield [self.special[BEGIN]], 0.0
        for role, text in turns:
            weight = WEIGHTS.get(role, OTHER_WEIGHT)
            yield [self.special["<|assistant|>" if role == QUOTED else f"<|{role}|>"]], OTHER_WEIGHT
            yield [*self._ids(text), self.special[END]], weight

    def _ids(self, text: str) -> list[int]:
        ids = self.known.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            if len(self.known) < 200_000:
                self.known[text] = ids
        return ids


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 100 steps, then a cosine down to 2 % of the peak."""
    decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / 100) * decay


def _save_checkpoint(path: Path, run: Run, phase: int, step: int, seconds: float) -> None:
    state = {
        "config": asdict(run.config),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "rng": run.stream.rng.getstate(),
        "phase": phase,
        "step": step,
        "seconds": seconds,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, config: PretrainConfig, model: Qwen3ForCausalLM) -> tuple[int, int, float, dict | None]:
    """Phase, step and seconds of the checkpoint, and its state for the optimizer and the stream."""
    if not path.exists():
        return 0, 0, 0.0, None
    state = torch.load(path, weights_only=True)
    if state["config"] != asdict(config):
        raise InputError(f"{path}: made with other settings ({state['config']}); use them or delete it to start anew")
    model.load_state_dict(state["model"])
    return state["phase"], state["step"], state["seconds"], state


def _record(config: PretrainConfig, model, losses: list[float], seconds: float) -> dict:
    tail = losses[-100:]
    return {
        "world_version": VERSION,
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": (config.steps + config.judge_steps) * config.rows * config.length,
        "answer_loss": round(sum(tail) / len(tail), 4) if tail else None,
        "seconds": round(seconds),
        "torch": torch.__version__,
    }
