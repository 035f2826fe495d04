PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt

.PHONY: demo test lint architectures bench bench-alone bench-peers clean

demo: $(VENV)/installed  ## stream an answer of the default model through a small memory budget
	$(BIN)/layermesh generate "Explain in three sentences why the sky is blue." --host-memory 100MB --temperature 0

test: $(VENV)/installed-dev  ## the tests
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev  ## formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

architectures: $(VENV)/installed-dev  ## every causal LM that transformers knows, against plain transformers
	$(BIN)/python -m tests.architectures.table

bench: bench-alone bench-peers  ## what the README and CHANGELOG claim, measured here; writes tests/benchmarks/results

bench-alone: $(VENV)/installed-dev  ## startup, memory, and how well reading hides behind computing
	$(BIN)/python -m tests.benchmarks.startup
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.steady
	$(BIN)/python -m tests.benchmarks.streaming
	$(BIN)/python -m tests.benchmarks.many
	$(BIN)/python -m tests.benchmarks.quality

bench-peers: $(VENV)/installed-dev  ## beside AirLLM, accelerate and llama.cpp, which it installs into ~/.cache/layermesh-bench
	$(BIN)/python -m tests.benchmarks.peers

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/python-checked:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "layermesh needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Say make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/python-checked pyproject.toml deploy/constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/python-checked pyproject.toml deploy/constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/installed
