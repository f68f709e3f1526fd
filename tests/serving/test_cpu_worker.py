import numpy as np
import pytest

pytestmark = pytest.mark.slow  # imports vLLM


@pytest.mark.parametrize(
    "adapters", [[1] * 12, [0] * 12, [3] * 12, [1, 1, 0, 0, 3, 3, 2, 2, 0, 0, 1, 1], [0, 3] * 6], ids=str
)
def test_lora_of_a_mixed_batch_equals_the_product_row_by_row(adapters: list[int]):
    """0 is the base. Every slot holds an adapter, which vLLM's own CPU path would give to the base's rows."""
    import torch
    from vllm.lora.layers import LoRAMapping

    from metagen_ray.serving.cpu_worker import ByAdapter

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    widths, slots, rank = (20, 8, 8), 3, 4
    a, b = [draw(slots, 1, rank, 16) for _ in widths], [draw(slots, 1, width, rank) for width in widths]
    x, y = draw(len(adapters), 16), draw(len(adapters), sum(widths))
    expected = y.clone()
    for row, adapter in enumerate(adapters):
        products = [0.5 * b[i][adapter - 1, 0] @ (a[i][adapter - 1, 0] @ x[row]) for i in range(len(widths))]
        expected[row] += torch.cat(products) if adapter else 0.0
    batch = ByAdapter(64, 16, "cpu")
    mapping = LoRAMapping(index_mapping=tuple(adapters), prompt_mapping=tuple(adapters), is_prefill=True)
    batch.update_metadata(mapping, [1, 2, 3], slots, 100)
    batch.add_lora_linear(y, x, tuple(a), tuple(b), 0.5, widths)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_sample_draws_each_row_from_its_own_distribution():
    import torch

    from metagen_ray.serving.cpu_worker import sample

    share_NV = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 1.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    torch.manual_seed(0)
    drawn = sample(share_NV.log().repeat(20_000, 1)).reshape(20_000, 3).numpy()
    for row, share_V in enumerate(share_NV.numpy()):
        found_V = np.bincount(drawn[:, row], minlength=4) / len(drawn)
        assert (found_V[share_V == 0] == 0).all()
        assert np.abs(found_V - share_V).max() < 5 * np.sqrt(0.25 / len(drawn))
    correlation = np.corrcoef(drawn[:, 0], drawn[:, 2])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(len(drawn))


def test_sample_never_draws_what_has_no_share_whatever_the_size_of_the_vocabulary():
    """Words without a share fill whole blocks, begin and end others; the last block is not full."""
    import torch

    from metagen_ray.serving.cpu_worker import sample

    torch.manual_seed(0)
    share_V = torch.rand(200)
    share_V[:70] = share_V[120:140] = share_V[190:] = 0.0
    share_V /= share_V.sum()
    found_V = np.bincount(sample(share_V.log().repeat(50_000, 1)).numpy(), minlength=200) / 50_000
    assert (found_V[share_V.numpy() == 0] == 0).all()
    assert np.abs(found_V - share_V.numpy()).max() < 5 * np.sqrt(share_V.max().item() / 50_000)
    peaked = torch.full((3, 130), -1e4)
    peaked[[0, 1, 2], [0, 64, 129]] = 0.0
    assert sample(peaked).tolist() == [0, 64, 129]
    peaked[1] = float("nan")
    first, broken, last = sample(peaked).tolist()
    assert (first, last) == (0, 129) and 0 <= broken < 192  # of a broken model; its neighbours are not touched
    assert sample(peaked[:0]).tolist() == []


def test_kernels_say_what_the_operators_say():
    from types import SimpleNamespace

    import torch
    from vllm import ir
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.platforms import current_platform

    from metagen_ray.serving.cpu_kernels import PROVIDER, fused_add_rms_norm, rms_norm, silu_and_mul, use_kernels

    current_platform.import_kernels()
    torch.manual_seed(0)
    x, other, weight = torch.randn(7, 96), torch.randn(7, 96), torch.rand(96)
    native = {name: getattr(ir.ops, name).impls["native"].impl_fn for name in ("rms_norm", "fused_add_rms_norm")}
    heads = x.view(7, 3, 32)[:, :2]  # not contiguous, as queries are
    torch.testing.assert_close(rms_norm(heads, weight[:32], 1e-6), native["rms_norm"](heads, weight[:32], 1e-6))
    expected = native["fused_add_rms_norm"](x, other, weight, 1e-6)
    torch.testing.assert_close(fused_add_rms_norm(x.clone(), other.clone(), weight, 1e-6), expected)
    torch.testing.assert_close(silu_and_mul(None, x), SiluAndMul.forward_native(x))  # type: ignore[arg-type]
    chosen = SimpleNamespace(rms_norm=None, fused_add_rms_norm=None)
    use_kernels(SimpleNamespace(kernel_config=SimpleNamespace(ir_op_priority=chosen)))  # type: ignore[arg-type]
    assert chosen.rms_norm[0] == chosen.fused_add_rms_norm[0] == PROVIDER
    for name in native:
        op = getattr(ir.ops, name)
        assert PROVIDER in op.impls
        arguments = (x, weight, 1e-6) if name == "rms_norm" else (x, other, weight, 1e-6)
        assert op.impls[PROVIDER].supports_args(*arguments)
        assert not op.impls[PROVIDER].supports_args(*arguments, 48)
