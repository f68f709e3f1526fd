"""The size of a bank and the dealing into lanes and banks, at their edges."""

import random

import pytest

from metagen_ray.cost import bank, roofline
from metagen_ray.cost.bank import CPU_BANK, BankMemory, bank_memory, choose_bank, cut_banks, deal
from metagen_ray.cost.decoder import Decoder
from metagen_ray.cost.gpus import find_gpu
from metagen_ray.serving.app import ServingSpec
from metagen_ray.training import base

QWEN3_4B = Decoder(2560, 36, 32, 8, 128, 9728, 151_936)


@pytest.mark.parametrize(
    ("domains", "lanes", "size"),
    [(100, 1, CPU_BANK), (100, 8, 13), (100, 100, 1), (3, 64, 1), (1, 1, 1), (16, 1, 16), (17, 2, 9), (32, 2, 16)],
)
def test_choose_bank_on_cpus_is_the_share_of_a_lane_or_the_cap(domains, lanes, size):
    assert choose_bank(domains, lanes) == size


@pytest.mark.parametrize(("room", "size"), [(0, 1), (1, 1), (4, 4), (12, 12), (13, 13), (500, 13)])
def test_choose_bank_on_gpus_is_what_memory_allows(room, size):
    memory = BankMemory(total=(10 + room) / bank.USABLE_SHARE + 1e-6, base=10, adapter=1)
    assert memory.room() == room
    assert choose_bank(100, 8, memory) == size


@pytest.mark.parametrize(("domains", "lanes"), [(0, 1), (4, 0)])
def test_choose_bank_of_nothing_is_refused(domains, lanes):
    with pytest.raises(ValueError, match="at least 1"):
        choose_bank(domains, lanes)


def test_bank_memory_is_base_activations_and_optimizer():
    adapter = QWEN3_4B.adapter_parameters(32)
    memory = bank_memory(QWEN3_4B, 80 * 2**30, step_tokens=1000, step_logits=100, adapter_parameters=adapter)
    assert memory.base == pytest.approx(8.04e9, rel=0.01)  # Qwen3-4B has 4.02 G parameters
    activations = 1000 * QWEN3_4B.activation_bytes() + 100 * QWEN3_4B.logits_bytes
    assert memory.adapter == activations + 16 * adapter
    assert memory.base + memory.room() * memory.adapter <= bank.USABLE_SHARE * 80 * 2**30
    assert memory.base + (memory.room() + 1) * memory.adapter > bank.USABLE_SHARE * 80 * 2**30


def test_bank_memory_recomputes_where_the_base_fills_the_gpu():
    large, small = (bank_memory(QWEN3_4B, find_gpu(name).memory_bytes, 1000, 0, 0) for name in ("H100", "L4"))
    assert small.adapter < large.adapter / 10


def test_cost_counts_with_the_settings_of_training_and_serving():
    assert bank.RECOMPUTE_SHARE == base.RECOMPUTE_SHARE
    spec = ServingSpec("", "", "")
    assert (spec.prompts_in_batch, spec.tokens_in_batch) == (roofline.SEQUENCES, roofline.PACK_TOKENS)


@pytest.mark.parametrize("seed", range(5))
def test_deal_gives_every_job_once_and_no_lane_a_job_too_many(seed):
    rng = random.Random(seed)
    costs = [rng.randrange(1, 50) for _ in range(rng.randrange(1, 30))]
    shares = deal(costs, 4)
    assert sorted(job for share in shares for job in share) == list(range(len(costs)))
    loads = [sum(costs[job] for job in share) for share in shares]
    for share, load in zip(shares, loads, strict=True):
        assert not share or load - min(costs[job] for job in share) <= min(loads)  # its last job went to the least


@pytest.mark.parametrize(("jobs", "size", "sizes"), [(0, 4, []), (5, 8, [5]), (9, 4, [3, 3, 3]), (10, 4, [3, 4, 3])])
def test_cut_banks_are_even_and_in_order(jobs, size, sizes):
    banks = cut_banks(range(jobs), size)
    assert [len(b) for b in banks] == sizes and [job for b in banks for job in b] == list(range(jobs))
