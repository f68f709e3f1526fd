import json
from pathlib import Path

import pytest

from metagen_ray.errors import InputError
from metagen_ray.serving.merge import merge
from tests.serving.conftest import random_adapter
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "model", "digits")


def saved_adapter(base_dir: Path, folder: Path, **changed: object) -> Path:
    random_adapter(base_dir, seed=0).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changed))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("rslora", [False, True])
def test_merge_equals_peft(base_dir: Path, tmp_path: Path, shards: int, rslora: bool):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_dir)
    size = sum(p.numel() * 4 for p in base.parameters())
    base.save_pretrained(tmp_path / "base", max_shard_size=size // shards + 1)
    adapter = saved_adapter(base_dir, tmp_path / "adapter", use_rslora=rslora)
    merge(tmp_path / "base", adapter, tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) >= min(shards, 2)
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert set(found) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("odd", [{"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 2}}])
def test_merge_what_a_sum_cannot_express_is_refused_by_name(base_dir: Path, tmp_path: Path, odd: dict[str, object]):
    adapter = saved_adapter(base_dir, tmp_path / "adapter", **odd)
    with pytest.raises(InputError, match=next(iter(odd))):
        merge(base_dir, adapter, tmp_path / "merged")


def test_merge_an_adapter_of_another_base_is_refused(base_dir: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    adapter = saved_adapter(base_dir, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.0.", "layers.7."): tensor for name, tensor in tensors.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"layers\.7.*another base"):
        merge(base_dir, adapter, tmp_path / "merged")


def test_is_finite_tells_a_broken_adapter_from_a_sound_one(tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    from metagen_ray.serving.merge import WEIGHTS, is_finite

    for value, expected in ((1.0, True), (float("nan"), False), (float("inf"), False)):
        save_file({"a": torch.ones(3), "b": torch.tensor([0.0, value])}, tmp_path / WEIGHTS)
        assert is_finite(tmp_path) is expected
    (tmp_path / WEIGHTS).write_bytes(b"torn")
    assert is_finite(tmp_path)
