"""Samples that wait for each other, in vLLM's own engine: what is computed, what comes out, and that nobody is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LENGTHS = (1, 2, 31, 32, 33, 34, 63, 64, 65, 97)
SCRIPT = """
import json, os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind
from metagen_ray.serving import siblings, whole

asked = json.loads(sys.argv[1])
tokens, parts = [], []
plain, leave = whole.Scheduler.schedule, whole.WholeScheduler.update_from_output

def counting(self, *args, **kwargs):
    step = plain(self, *args, **kwargs)
    tokens.append(step.total_num_scheduled_tokens)
    return step

def counting_parts(self, *args, **kwargs):
    left = leave(self, *args, **kwargs)
    parts.extend(output for part in left.values() for output in part.outputs)
    return left

whole.Scheduler.schedule = counting
whole.WholeScheduler.update_from_output = counting_parts
settings = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 256, "seed": 1}
settings |= {"kv_cache_memory_bytes": asked["kv_bytes"], "max_num_seqs": asked["seats"]} | siblings.SETTINGS
llm = LLM(model=asked["model"], worker_cls="metagen_ray.serving.cpu_worker.Worker", **settings)
tokens.clear()
parts.clear()
sampling = SamplingParams(**asked["sampling"], output_kind=RequestOutputKind.FINAL_ONLY)
prompts = [{"prompt_token_ids": p} for p in asked["prompts"]]
if asked["abort"]:
    engine = llm.llm_engine
    for n, prompt in enumerate(prompts):
        engine.add_request(str(n), prompt, sampling)
    engine.step()
    engine.abort_request([str(n) for n in asked["abort"]])
    done = {}
    while engine.has_unfinished_requests():
        done |= {o.request_id: o for o in engine.step() if o.finished}
    outputs = [done[key] for key in sorted(done, key=int)]
else:
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
told = {"answers": [[list(a.token_ids) for a in o.outputs] for o in outputs], "tokens": sum(tokens)}
told |= {"parts": len(parts), "cached": [o.num_cached_tokens for o in outputs]}
told |= {"text": [o.outputs[0].text for o in outputs]}
told |= {"held": len(llm.llm_engine.engine_core.engine_core.scheduler._begun_answers)}
print("TOLD " + json.dumps(told))
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("siblings") / "model", "digits")


def prompt(length: int, number: int = 0) -> list[int]:
    return [1, *((20 + 7 * number + 3 * i) % 150 + 20 for i in range(length - 1))]


def run(model_dir: Path, prompts: list[list[int]], n: int, **changed: Any) -> dict[str, Any]:
    """What the engine said, and how many tokens it read and wrote."""
    sampling = {"n": n, "temperature": 1.0, "max_tokens": 8, "ignore_eos": True, "detokenize": False}
    asked = {"model": str(model_dir), "prompts": prompts, "kv_bytes": 64 * 2**20, "seats": 64, "abort": []}
    asked |= {"sampling": sampling | changed.pop("sampling", {})} | changed
    command = [sys.executable, "-c", SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    line = next((line for line in done.stdout.splitlines() if line.startswith("TOLD ")), None)
    assert line, done.stderr[-2000:]
    return json.loads(line.removeprefix("TOLD "))


def greedy(model_dir: Path, prompts: list[list[int]], count: int) -> tuple[list[list[int]], list[float]]:
    """The likeliest tokens in transformers, one prompt at a time, and by how much the closest call was won."""
    import torch
    from transformers import AutoModelForCausalLM

    model, answers, margins = AutoModelForCausalLM.from_pretrained(model_dir).eval(), [], []
    for given in prompts:
        ids, margin = list(given), float("inf")
        for _ in range(count):
            with torch.no_grad():
                best = model(torch.tensor([ids])).logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
        answers.append(ids[len(given) :])
        margins.append(margin)
    return answers, margins


def test_siblings_read_a_prompt_once_and_say_what_the_model_says(model_dir: Path):
    prompts, n = [prompt(length, number) for number, length in enumerate(LENGTHS)], 6
    told = run(model_dir, prompts, n, sampling={"temperature": 0.01})
    expected, margins = greedy(model_dir, prompts, 8)
    clear = [i for i, margin in enumerate(margins) if margin > 0.15]
    assert len(clear) >= 5
    for i in clear:
        assert told["answers"][i] == [expected[i]] * n, LENGTHS[i]
    # The leader reads the prompt, the others its last token alone; seven of the eight tokens said are read again.
    assert told["tokens"] == sum(LENGTHS) + (n - 1) * len(LENGTHS) + 7 * n * len(LENGTHS)
    assert told["parts"] == n * len(LENGTHS)  # and each answer leaves the engine's process once


def test_siblings_leave_whole_unless_somebody_reads_them_on_the_way(model_dir: Path):
    prompts = [prompt(70), prompt(70)]
    whole = run(model_dir, prompts, 1, seats=1, sampling={"temperature": 0.0, "detokenize": True})
    assert whole["parts"] == 2
    assert whole["cached"] == [0, 64]  # the first token's message said so
    for asked in ({"stop": ["\n\n\n"]}, {"logprobs": 1}):
        on_the_way = run(model_dir, prompts, 1, seats=1, sampling={"temperature": 0.0, "detokenize": True, **asked})
        assert on_the_way["parts"] == 16
        assert (on_the_way["answers"], on_the_way["text"]) == (whole["answers"], whole["text"])


def test_siblings_are_independent_draws(model_dir: Path):
    told = run(model_dir, [prompt(40)], 64)
    answers = [tuple(a) for a in told["answers"][0]]
    assert len(set(answers)) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": {"stop_token_ids": list(range(300)), "ignore_eos": False}},  # every leader ends at its first token
        {"seats": 4},  # more samples than seats
        {"kv_bytes": 300_000},  # too few blocks for all: some are pushed out and begin again
        {"sampling": {"max_tokens": 1}},
    ],
    ids=["leaders end at once", "few seats", "few blocks", "one token"],
)
def test_siblings_all_answer_whatever_becomes_of_their_leader(model_dir: Path, changed: dict[str, Any]):
    told = run(model_dir, [prompt(50, number) for number in range(12)], 10, **changed)
    assert [len(group) for group in told["answers"]] == [10] * 12
    assert all(answer for group in told["answers"] for answer in group)


def test_siblings_of_a_request_that_is_given_up_go_with_it(model_dir: Path):
    told = run(model_dir, [prompt(50, number) for number in range(12)], 10, seats=16, abort=[0, 1, 7, 11])
    assert [len(group) for group in told["answers"]] == [10] * 8
    assert told["held"] == 0  # of the answers that were begun
