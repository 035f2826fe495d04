PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt

.PHONY: demo test test-mesh test-gpu chaos chaos-sample gates nightly lint protos architectures bench bench-alone bench-peers bench-mesh bench-gpu clean newest oldest

demo: $(VENV)/installed  ## stream an answer of the default model through a small memory budget
	$(BIN)/layermesh generate "Explain in three sentences why the sky is blue." --host-memory 100MB --temperature 0

test: $(VENV)/installed-dev  ## the tests, but for those below
	$(BIN)/python -m pytest --ignore tests/mesh --ignore tests/chaos --ignore tests/hostile

test-mesh: $(VENV)/installed-dev  ## workers beside each other; as root on Linux also on hosts made of network namespaces
	$(BIN)/python -m pytest tests/mesh

chaos: $(VENV)/installed-dev  ## real workers killed, frozen and cut off at every point; SEED=N replays a run; writes tests/benchmarks/results
	$(BIN)/python -m pytest tests/chaos --full $(if $(SEED),--seed $(SEED))

chaos-sample: $(VENV)/installed-dev  ## a minute of that
	$(BIN)/python -m pytest tests/chaos $(if $(SEED),--seed $(SEED))

test-gpu: $(VENV)/installed-dev  ## those that need an NVIDIA card, which `make test` leaves out where there is none
	$(BIN)/python -m pytest tests/gpu -rs

# What depends on the inside of other libraries, with other versions of them, each in a new environment.
VERSION_TESTS := tests/shared tests/coordinator tests/worker/test_cache_check.py tests/worker/test_stage.py \
  tests/worker/test_decode_step.py tests/layermesh/test_python_api.py

newest: $(VENV)/python-checked  ## the newest versions of everything but torch, with the tests of what is taken from their inside
	$(call in-new-environment,newest,grep '^torch==' deploy/constraints.txt)

oldest: $(VENV)/installed-dev  ## the oldest versions that pyproject.toml allows, with the same tests
	$(call in-new-environment,oldest,$(BIN)/python -m tests.versions)

define in-new-environment
	rm -rf $(VENV)-$(1)
	$(PYTHON) -m venv $(VENV)-$(1)
	$(2) > $(VENV)-$(1)/constraints.txt
	$(VENV)-$(1)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(VENV)-$(1)/constraints.txt --editable '.[dev]'
	$(VENV)-$(1)/bin/python -m pytest --quiet $(VERSION_TESTS)
	$(VENV)-$(1)/bin/python -m tests.architectures.table
endef

# Tests of what others may do to us, which must say the same under `python -O`. All but tests/hostile run without it as well.
SECURITY_TESTS := tests/gates tests/hostile tests/shared/checkpoints tests/shared/test_hidden_states.py \
  tests/shared/test_manifest.py tests/shared/test_wire.py tests/worker/test_bit_flips.py tests/worker/test_limits.py \
  tests/coordinator/test_chat.py tests/coordinator/test_tokenizer.py tests/coordinator/test_tokenizer_check.py \
  tests/mesh/test_bad_input.py tests/mesh/test_full_disk.py tests/mesh/test_hostile_messages.py tests/mesh/test_versions.py

gates: $(VENV)/installed-dev  ## what must never be in the sources, published holes, and the security tests without asserts
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml coordinator layermesh shared worker
	$(BIN)/python -m tests.gates.audit
	PYTHONOPTIMIZE=1 LAYERMESH_HOSTILE_MESSAGES=2000 \
	  $(BIN)/python -m pytest --quiet -W ignore::pytest.PytestConfigWarning $(SECURITY_TESTS)

nightly: $(VENV)/installed-dev newest oldest  ## a million hostile messages, LAYERMESH_SEED chooses which; other versions of libraries
	LAYERMESH_HOSTILE_MESSAGES=1000000 $(BIN)/python -m pytest tests/mesh/test_hostile_messages.py -s

lint: $(VENV)/installed-dev  ## formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

protos: $(VENV)/installed-dev  ## the Python of protos/mesh.proto, to be committed with it
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. layermesh/protos/mesh.proto

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

bench-mesh: $(VENV)/installed-dev  ## several hosts made of network namespaces, also beside llama.cpp's RPC backend; needs root
	$(BIN)/python -m tests.benchmarks.mesh

bench-gpu: $(VENV)/installed-dev  ## an 8B and a 70B shape in 4 GB of an NVIDIA card; writes tests/benchmarks/results/gpu.json
	$(BIN)/python -m tests.benchmarks.gpu

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest .mypy_cache .pytest_cache .ruff_cache .hypothesis

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
