"""Seconds of work on a GPU: which side of the roofline binds, banks, GPUs by name, bad settings."""

import dataclasses

import pytest

from metagen_ray.cost.decoder import Decoder
from metagen_ray.cost.gpus import GPUS, find_gpu
from metagen_ray.cost.roofline import ADAM_BYTES, Machine, Utilisation
from metagen_ray.cost.work import Reads, Work, asking, group, straight
from metagen_ray.errors import InputError

QWEN3_4B = Decoder(2560, 36, 32, 8, 128, 9728, 151_936)
FULL = Utilisation(1.0, 1.0, 1.0)


def machine(**changes) -> Machine:
    return Machine(**{"gpu": find_gpu("H100"), "decoder": QWEN3_4B, **changes})


def test_reading_is_bound_by_flops_and_writing_by_bytes():
    h100 = machine().gpu
    prefill, decode = machine().phases(asking([group(0, [512] * 64)], 1, 200))
    assert (prefill.kind, decode.kind) == ("prefill", "decode")
    assert prefill.flops / h100.flops_per_s > prefill.bytes / h100.bytes_per_s
    assert decode.flops / h100.flops_per_s < decode.bytes / h100.bytes_per_s


def test_writing_reads_the_base_once_for_every_token_of_a_batch():
    tokens, context = 256 * 100, 50
    (decode,) = machine().phases(Work(written=Reads(tokens, tokens * context, 0)))
    assert decode.bytes == pytest.approx(100 * QWEN3_4B.weight_bytes + tokens * context * QWEN3_4B.kv_bytes)


def test_writing_long_contexts_fits_fewer_answers_in_a_batch():
    assert machine().sequences(100) == 256
    assert 1 <= machine().sequences(20_000) < 30
    assert machine(gpu=find_gpu("H200")).sequences(20_000) > machine().sequences(20_000)


def test_limit_is_what_full_utilisation_gives_at_best():
    phases = machine().phases(asking([group(300, [40] * 60)], 4, 100))
    assert machine().limit_s(phases) <= machine(utilisation=FULL).seconds(phases) < machine().seconds(phases)


def test_half_the_utilisation_takes_twice_as_long():
    phases = machine().phases(Work(trained=straight(10_000, logits=5_000), updates=2))
    one, half = (machine(utilisation=Utilisation(training=share)).seconds(phases) for share in (0.8, 0.4))
    assert half == pytest.approx(2 * one)


def test_bank_does_the_same_flops_and_reads_the_base_once():
    works, adapter = [Work(trained=straight(800, logits=400), updates=10)] * 4, 1_000_000
    (alone,) = machine().bank_phases(works[:1], adapter)
    (bank,) = machine().bank_phases(works, adapter)
    assert alone == machine().phases(works[0], adapter)[0]
    assert bank.flops == pytest.approx(4 * alone.flops)
    assert 4 * alone.bytes - bank.bytes == pytest.approx(3 * 10 * 2 * QWEN3_4B.weight_bytes)
    assert alone.bytes > 10 * ADAM_BYTES * adapter


def test_base_too_large_for_the_gpu_is_refused():
    large = dataclasses.replace(QWEN3_4B, layers=400)
    with pytest.raises(InputError, match="choose a larger GPU"):
        machine(decoder=large).check()
    machine().check()


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_utilisation_outside_0_to_1_is_refused(share):
    with pytest.raises(InputError, match="prefill"):
        Utilisation(prefill=share)


@pytest.mark.parametrize(("name", "found"), [("h100", "H100-SXM"), ("A100", "A100-80"), ("L4", "L4"), ("L40S", "L40S")])
def test_gpu_is_found_by_its_beginning(name, found):
    assert find_gpu(name).name == found


@pytest.mark.parametrize(
    ("name", "near"), [("H300", "H200"), ("A100-40", "A100-80"), ("B20", "B200"), ("", "known are")]
)
def test_gpu_unknown_names_the_nearest(name, near):
    with pytest.raises(InputError, match=near):
        find_gpu(name)


def test_gpu_table_is_complete():
    assert {"L4", "L40S", "A100-80", "H100-SXM", "H200", "B200"} <= {gpu.name for gpu in GPUS}
    for gpu in GPUS:
        assert gpu.source and gpu.price_source and min(gpu.tflops, gpu.memory_gib, gpu.usd_per_hour) > 0
        assert 100 < gpu.flops_per_s / gpu.bytes_per_s < 500  # FLOPs a byte
