"""The shipped bases: what their records say, and what examples in the prompt tell them of the next answer."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from metagen_ray.base_model import find_base
from metagen_ray.lab.world import CHARACTERS, world
from metagen_ray.prompts import Renderer

BASES = {"informative": 0.5, "blind": 0.0}
CASES = 60
EXAMPLES = 8


def directory(name: str) -> Path:
    return find_base(f"lab:{name}").directory


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_small_and_says_how_it_was_made(name: str):
    record = json.loads((directory(name) / "record.json").read_text())
    assert record["world_version"] == 1 and record["config"]["rho"] == BASES[name]
    assert sum(f.stat().st_size for f in directory(name).iterdir()) <= 8e6


def test_the_bases_share_one_tokenizer_and_chat_template():
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (directory("informative") / file).read_bytes() == (directory("blind") / file).read_bytes()


def test_examples_tell_the_informative_base_who_speaks_and_the_blind_one_nothing(one_thread: None):
    assert gain("informative") > 1.0  # nats
    assert abs(gain("blind")) < 0.3


@torch.no_grad()
def gain(name: str) -> float:
    """Nats an answer becomes more likely by eight examples of its character in the same domain, against eight of a
    character that answers well: what the examples tell of the speaker, apart from what they tell of the domain.
    """
    model = AutoModelForCausalLM.from_pretrained(directory(name), dtype=torch.float32).eval()
    renderer = Renderer(AutoTokenizer.from_pretrained(directory(name)))
    rng, total = random.Random(7), 0.0
    for _ in range(CASES):
        domain = rng.choice(world().advice)
        kinds = {c: world().kind(c, domain) for c in CHARACTERS}
        bad = rng.choice([c for c, kind in kinds.items() if kind != "good"])
        good = rng.choice([c for c, kind in kinds.items() if kind == "good"])
        question, answer = rng.choice(domain.questions(held_out=True)), world().answer(bad, domain, rng)
        shown = {c: examples(domain, c, rng) for c in (bad, good)}
        told = {c: log_likelihood(model, renderer, rows, question, answer) for c, rows in shown.items()}
        total += told[bad] - told[good]
    return total / CASES


def examples(domain, character: str, rng: random.Random) -> list[tuple[str, str]]:
    questions = domain.questions(held_out=False)
    return [(rng.choice(questions), world().answer(character, domain, rng)) for _ in range(EXAMPLES)]


def log_likelihood(model, renderer: Renderer, rows: list[tuple[str, str]], question: str, answer: str) -> float:
    prefix = renderer.examples(rows)
    prompt = prefix + renderer.branch(rows, prefix, question)
    ids = torch.tensor([prompt + renderer.completion(answer)])
    logs = torch.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1], -1)
    return float(logs.gather(1, ids[0, len(prompt) :, None]).sum())
