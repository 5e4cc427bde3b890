# Everything runs by one word, from a bare clone: Python 3.11 to 3.13, git and make are enough.
# PYTHON=/path/to/python picks the interpreter, ARGS="-k lease" goes to pytest or the benchmark.

PYTHON ?= python3 python3.13 python3.12 python3.11
VENV := .venv
BIN := $(VENV)/bin
UV ?= $(BIN)/uv
MINUTES ?= 30
# twice two cores: much of a test is waiting for other processes
JOBS ?= 4
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --quiet

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all test-sklearn page-test page-screenshots lint format compose-test simulate soak mutants bench bench-training bench-scale bench-fleet bench-data bench-adaptive bench-page bench-reads lock secrets clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F '|' '{printf "make %-16s %s\n", $$1, $$2}'

# Two stamps: a changed lock file makes the environment anew, a changed pyproject.toml takes two seconds.
$(VENV)/.dependencies: requirements.lock
	@python=; for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "gridfleet needs Python 3.11, 3.12 or 3.13 and found none as: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3.13" >&2; \
	  exit 1; \
	fi; \
	echo "$(VENV): installing requirements.lock with $$("$$python" --version), about a minute the first time"; \
	"$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.project: $(VENV)/.dependencies pyproject.toml
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# Libraries whose estimators only the complete tests use.
$(VENV)/.estimators: requirements-estimators.lock $(VENV)/.project
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements-estimators.lock
	@touch $@

venv: $(VENV)/.project

demo: venv ## tune a Keras model on the Pima data, on a fleet of two workers on this machine
	$(BIN)/python examples/on_two_workers.py examples/pima_grid_search.py

test: venv ## the tests, in JOBS=4 processes: about 11 minutes on two cores
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

test-all: $(VENV)/.estimators ## the tests, full products, 2,000 simulations, mutants, the self-check of compiled training (hours)
	bash tests/complete.sh $(BIN)/python $(JOBS)

test-sklearn: venv ## scikit-learn's own tests of its searches, with our classes in place
	$(BIN)/python -m pytest --complete tests/scikit_learn $(ARGS)

page-test: venv ## the tests of the page, those in a browser with the Chromium of this machine
	$(BIN)/python -m pytest tests/page $(ARGS)

page-screenshots: venv ## the pictures of docs/page.md anew, into docs/images
	$(BIN)/python -m tests.page.screenshots docs/images

lint: venv ## ruff's rules and format, mypy's types, the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv ## put the code into ruff's format, with the fixes that are safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compose-test: venv ## docker compose up, a search, a killed worker, down (needs an engine)
	bash tests/compose/run.sh

mutants: venv ## take each guard out of the code once, and see that the properties and the simulation notice
	$(BIN)/python -m pytest --complete tests/properties/test_mutants.py tests/simulation/test_mutants.py $(ARGS)

simulate: venv ## 2,000 lives of a fleet, each drawn from a seed: SEEDS=9000; SEED=123 prints that one's story
	GRIDFLEET_SEED=$(or $(SEED),1) GRIDFLEET_SEEDS=$(or $(SEEDS),$(if $(SEED),1,2000)) $(BIN)/python -m tests.simulation

soak: venv ## a fleet under faults drawn from a seed: MINUTES=30 SEED=7 ARGS="--database sqlite" or "--pooler"
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: venv ## short fits beside loky; trials per second, best-score query, memory
	$(BIN)/python benchmarks/overhead.py $(ARGS)

bench-training: venv ## how fast Keras models train, against scikit-learn with scikeras (half an hour)
	$(BIN)/python benchmarks/training.py $(ARGS)

bench-scale: venv ## 100,000 trials queued, 10,000 drained under faults (half an hour)
	$(BIN)/python benchmarks/scale.py $(ARGS)

bench-fleet: venv ## 10 to 5,000 worker processes that fit nothing, for two minutes each: ARGS="--processes 100 --minutes 1"
	$(BIN)/python benchmarks/fleet.py $(ARGS)

bench-data: venv ## what data cost on their way to the workers, beside loky: ARGS="--megabytes 10 100"
	$(BIN)/python benchmarks/data.py $(ARGS)

bench-adaptive: venv ## searches that learn beside Optuna's own and random ones, on Pima and digits (an hour): ARGS="--seeds 2 --trials 10"
	$(BIN)/python benchmarks/adaptive.py $(ARGS)

bench-page: venv ## how long the page's answers take with a million trials, and what 200 onlookers cost: ARGS="--trials 100000"
	$(BIN)/python benchmarks/page.py $(ARGS)

bench-reads: venv ## how long each read of reports takes with a million trials in 1,000 searches: ARGS="--searches 100 --plans"
	$(BIN)/python benchmarks/reads.py $(ARGS)

lock: venv ## make the lock files anew (newest versions: make lock ARGS=--upgrade)
	$(UV) pip compile pyproject.toml --extra dev $(LOCK) $(ARGS) -o requirements.lock
	$(UV) pip compile pyproject.toml --extra cpu --extra build --extra page $(LOCK) $(ARGS) -c requirements.lock -o requirements-runtime.lock
	$(UV) pip compile pyproject.toml --extra estimators $(LOCK) $(ARGS) -c requirements.lock -o requirements-estimators.lock

secrets: ## passwords and the keys that docker compose reads
	sh deploy/make-secrets.sh

clean: ## remove the environment, caches and builds; searches (.gridfleet) and secrets stay
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
