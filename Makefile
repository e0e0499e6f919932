# Everything happens in .venv. On a machine without an NVIDIA GPU, spare yourself gigabytes of CUDA libraries:
#   make quickstart PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests; each computes in one thread. Two more than two cores have, as tests wait for servers.
WORKERS ?= 4

# Each process that a test starts would compile trtstream anew, and each worker the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install quickstart check fast-tests test tests test-all lint style imports types clean

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

install: $(VENV)/installed ## everything that the other targets need, in .venv

$(VENV)/installed: pyproject.toml setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
		|| { echo "trtstream needs Python 3.10 to 3.12; $(PYTHON) is $$($(PYTHON) -V). Set PYTHON=python3.12" >&2; exit 1; }
	@command -v g++ >/dev/null || { echo "trtstream needs g++ (Debian, Ubuntu: apt install g++)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: install ## SmolLM2-135M: fetch, build, package, serve, smoke, bench, a conversation
	$(BIN)/trtstream quickstart

check: install ## lint and the tests without servers, large models, kernels and measuring: while you work
	@$(MAKE) --no-print-directory --jobs=4 --output-sync style imports types fast-tests

# A worker for each core, as these tests wait for nothing.
fast-tests: install
	$(BIN)/python -m pytest -n 2 -m "not (slow or triton or smollm2 or builder or process or kernels or measuring or variants)"

test: install style ## lint and all tests but the slow ones, at the same time
	@$(MAKE) --no-print-directory --jobs=3 imports types tests

tests: install
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --durations=25

test-all: test ## the slow tests too, as CI does
	$(BIN)/python -m pytest -n $$(($(WORKERS) - 1)) -m slow --durations=25 # they wait less

lint: install ## style, direction of imports, and types
	@$(MAKE) --no-print-directory --jobs=3 --output-sync style imports types

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror plugins/cpu/* tests/plugins/*.cpp benchmarks/*.cpp

imports: install
	$(BIN)/lint-imports --no-logo

# The Triton models too: their folders are packages to mypy.
types: install
	$(BIN)/mypy -p trtstream -p benchmarks -p examples

clean: ## remove what the other targets made
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .import_linter_cache *.egg-info
