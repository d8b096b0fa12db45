# Two commands do everything on a fresh machine: `make demo` and `make test`. Neither needs root or Docker.

PYTHON ?= python3
VENV := .venv
PEERS := $(VENV)/peers
BIN := $(VENV)/bin
BACKEND ?= redis
# Tests mostly wait, so six processes suit two processors; they share the brokers. Files run in alphabetical order.
PARALLEL ?= -n 6 --dist loadfile --no-loadscope-reorder
FRAMES ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults soak rounds mutants check audit floor newest force bench bench-full format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The demo needs fewer packages than the tests; an environment for the tests suffices for both.
FOR_DEMO := -e '.[brokers,images]'
FOR_TESTS := -e '.[brokers,images,nkeys]' -r .ci/requirements.txt
$(VENV)/installed: NEEDS = $(FOR_TESTS)
$(VENV)/installed-for-demo: NEEDS = $(FOR_DEMO)
$(VENV)/installed $(VENV)/installed-for-demo: pyproject.toml .ci/constraints.txt .ci/requirements.txt
	@$(PYTHON) .ci/install.py $(VENV) -c .ci/constraints.txt $(NEEDS)
	@touch $@

setup: $(VENV)/installed  ## create the environment; the other targets do it if necessary

demo: $(or $(wildcard $(VENV)/installed),$(VENV)/installed-for-demo)  ## cameras -> detectors -> tracker -> sink on a real broker; BACKEND=redis|nats|kafka|memory FRAMES=folder|video RATE=10
	$(BIN)/python -m examples.camera_pipeline --backend $(BACKEND) $(if $(FRAMES),--frames '$(FRAMES)') $(if $(RATE),--rate '$(RATE)')

test: setup  ## run the tests, without those of `make faults`, on real Redis, NATS and Kafka servers, which are started
	$(BIN)/python -m pytest $(PARALLEL)

faults: setup  ## run all fault tests and the cluster tests, with a ledger per test: some minutes
	$(BIN)/python -m pytest tests/faults -v -m "faults or not faults"
	$(BIN)/python -m pytest --ignore tests/faults -m faults

soak: setup  ## inject random faults on BACKEND=redis|nats|kafka for SECONDS=3600, SEED=1; writes benchmarks/results/
	$(BIN)/python -m tests.faults.soak --backend $(BACKEND) --seconds $(or $(SECONDS),3600) --seed $(or $(SEED),1)

rounds: setup  ## inject each fault of operators, networks and group members on Kafka ROUNDS=30 times, SEED=1; writes benchmarks/results/
	$(BIN)/python -m tests.faults.rounds --rounds $(or $(ROUNDS),30) --seed $(or $(SEED),1)

mutants: setup  ## make COUNT=100 small changes of the package, SEED=1, and run the tests of each; ONLY=msight_bus/data/ for a part
	$(BIN)/python -m tests.mutants --seed $(or $(SEED),1) --count $(or $(COUNT),100) --only $(or $(ONLY),msight_bus/)

check: setup  ## check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

audit: $(VENV)/tools/installed  ## look up known vulnerabilities of the pinned versions
	$(VENV)/tools/bin/python .ci/audit.py

floor: $(VENV)/lowest-direct/installed  ## test contract, backends and command line with the lowest versions that pyproject.toml permits
newest: $(VENV)/highest/installed  ## test the same with the newest versions that pyproject.toml permits
floor newest:
	@# Deprecations between these packages are not errors of this project.
	$(<D)/bin/python -m pytest -W default::DeprecationWarning $(PARALLEL) tests/contract tests/backends tests/cli

$(VENV)/tools/installed:
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/pip install --disable-pip-version-check pip-audit==2.10.1 uv==0.13.9
	@touch $@

$(VENV)/lowest-direct/installed $(VENV)/highest/installed: $(VENV)/%/installed: pyproject.toml .ci/requirements.txt $(VENV)/tools/installed
	$(PYTHON) -m venv --clear $(@D)
	$(VENV)/tools/bin/uv pip install --python $(@D)/bin/python --resolution $* $(FOR_TESTS)
	@touch $@

$(VENV)/highest/installed: force  # look for newer releases each time

bench: setup $(PEERS)/installed  ## compare the bus with raw protocols and other libraries: three minutes
	$(BIN)/python -m benchmarks quick

bench-full: setup $(PEERS)/installed  ## compare all sizes in all rounds: 25 minutes; writes benchmarks/results/
	$(BIN)/python -m benchmarks full

# In a separate folder, because these libraries pin other versions of packages that the project uses.
$(PEERS)/installed: $(VENV)/installed
	rm -rf $(PEERS)
	for package in faststream fast-depends confluent-kafka msight-core pyzmq eclipse-zenoh; do \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c .ci/constraints.txt --target $(PEERS) $$package \
	  || echo "$$package cannot be installed; its rows are skipped"; \
	done
	@touch $@

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, caches and results
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
