"""The shape of the tree: who may import whom and what, and what no tracked file may name."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Imports go down these rows, never up. A room may import lower rows, and those of its own row that PEERS lists.
ROWS = (
    {"jobs", "cli"},
    {"commands"},
    {"stages", "cluster", "submit", "doctor", "nodes", "spot"},
    {"training", "serving", "predictors", "suites", "plots", "view", "lab"},
    {
        "sampler",
        "prompts",
        "records",
        "store",
        "study",
        "split",
        "analysis",
        "cost",
        "progress",
        "scratch",
        "metrics",
        "autoscaler",
        "base_model",
        "tokenizer",
    },
    {"errors", "ending"},
)
# Within a row: (importer, imported).
PEERS = {
    ("jobs", "cli"),
    ("stages", "cluster"),
    ("stages", "nodes"),
    ("cluster", "nodes"),
    ("doctor", "cluster"),
    ("view", "plots"),
    ("plots", "view"),  # view.names alone, see below
    ("suites", "lab"),
    ("split", "study"),
}
# A library that is heavy or that binds: the only places that may import it.
LIBRARIES = {
    "ray": (
        "stages",
        "cluster",
        "nodes",
        "submit",
        "doctor",
        "spot",
        "serving",
        "training/lanes",
        "metrics",
        "autoscaler",
    ),
    "torch": (
        "doctor",
        "training",
        "predictors",
        "lab",
        "serving/cpu_kernels",
        "serving/cpu_worker",
        "serving/merge",
        "serving/siblings",
    ),
    "deepspeed": ("training",),
    "peft": ("training",),
    "vllm": ("serving",),
    "matplotlib": ("plots",),
    "obstore": ("store",),
}
NUMBERS_ALONE = ("analysis", "cost")  # these rooms take numpy and the standard library, and print nothing
NUMBERS_MAY_IMPORT = {"numpy", "metagen_ray"}
NO_IO = {"open", "print", "input"}
# Hosts of registries and folders of a single machine. The wheel index of PyTorch stands in the README alone.
FOREIGN = re.compile(
    r"/(?:work|root|home/(?!ray/)|opt/(?:wheels|pypi)|tmp/team)/|\bpypi\.org|pythonhosted|files\.python|download\.pytorch"
)


def package_files() -> list[Path]:
    """Python files of the package and of the jobs."""
    return sorted([*(ROOT / "metagen_ray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def room(path: Path) -> str:
    """The capability a file belongs to: its folder or, at the top, its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "jobs" else parts[1]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, is it imported only for types) of every import in a file, late ones included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            yield from ((f"{node.module}.{alias.name}", id(node) in typing_only) for alias in node.names)


def row_of(name: str) -> int:
    """Index of a room's row."""
    for index, row in enumerate(ROWS):
        if name in row:
            return index
    raise AssertionError(f"room {name!r} has no place in ROWS; decide which rooms may import it")


def may_import(importer: str, imported: str) -> bool:
    """Whether the one way of imports allows it."""
    if imported == importer or (importer, imported) in PEERS:
        return True
    return row_of(importer) < row_of(imported)


@pytest.mark.parametrize("path", package_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_of_a_file_go_one_way(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "metagen_ray" and len(parts) > 1:
            assert may_import(own, parts[1]), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", package_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_are_imported_only_where_they_live(path: Path) -> None:
    inside = path.relative_to(ROOT).as_posix().removeprefix("metagen_ray/")
    for name, for_types in imports(path):
        places = LIBRARIES.get(name.split(".")[0])
        if places is not None and not for_types:
            assert inside.startswith(places), f"{inside} imports {name}; that belongs into {places}"


def test_stages_do_not_import_each_other_through_the_cli_or_the_jobs() -> None:
    for path in package_files():
        if room(path) not in {"cli", "commands", "jobs"}:
            above = ("metagen_ray.cli", "metagen_ray.commands", "jobs")
            assert not [n for n, _ in imports(path) if n.startswith(above)], path


def test_plots_take_nothing_but_names_from_view() -> None:
    for path in (ROOT / "metagen_ray" / "plots").rglob("*.py"):
        taken = [n for n, _ in imports(path) if n.startswith("metagen_ray.view")]
        assert all(n.startswith("metagen_ray.view.names") for n in taken), path


@pytest.mark.parametrize("name", NUMBERS_ALONE)
def test_rooms_of_numbers_import_numpy_alone_and_do_no_io(name: str) -> None:
    for path in (ROOT / "metagen_ray" / name).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, _ in imports(path):
            top = name.split(".")[0]
            assert top in NUMBERS_MAY_IMPORT or is_standard_library(top), f"{path}: {name}"
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not called & NO_IO, path


def is_standard_library(top: str) -> bool:
    """Whether a top-level module comes with Python."""
    return top in sys.stdlib_module_names


def test_tracked_files_name_no_machine_and_no_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    own = Path(__file__).relative_to(ROOT).as_posix()
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if name == own or not path.is_file():
            continue
        for line in path.read_bytes().decode("utf-8", "replace").splitlines():
            found = FOREIGN.search(line)
            is_the_marked_line = name == "README.md" and "torch-cpu-index" in line
            assert not found or is_the_marked_line, f"{name}: {found and found.group()} in {line[:120]!r}"
