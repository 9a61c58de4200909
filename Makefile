# The two commands of a fresh machine are `make run` and `make test`; both make .venv by themselves.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements/dev.txt

.PHONY: help venv run test inside outside platforms soak simulate check lint types unit bench packages lock clean

help:
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

venv: $(STAMP) ## make .venv and install rotator with everything locked by hash

run: $(STAMP) ## the daemon on the embedded sandbox; Ctrl-C ends it
	@$(BIN)/rotator demo

packages: ## install the Debian packages that the tests need, or name the missing ones
	@sh tools/debian-packages.sh

# Two halves beside each other, about as long as one another: the parts, and the whole program. Each prints at its end.
test: $(STAMP) packages ## every test but those of `make platforms`; less than 20 minutes
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target inside outside

inside: $(STAMP)
	$(BIN)/python -m pytest -m "not long" tests/unit tests/contract tests/integration

outside: $(STAMP)
	$(BIN)/python -m pytest -m "not long" tests/acceptance tests/simulation

platforms: $(STAMP) packages ## what takes longer: every provider in one suite, malformed answers, demos, faults of Vault, late copies
	$(BIN)/python -m pytest -m long

soak: $(STAMP) packages ## kill the daemon 1,000 times; SEED=… repeats one, KILLS=… makes it shorter
	PYTHONPATH=tests $(BIN)/python tests/acceptance/soak.py

simulate: $(STAMP) ## 200 simulated years of 100 keys with faults at random; prints what broke, and its seed
	PYTHONPATH=tests $(BIN)/python -m simulation.years

unit: $(STAMP) ## the tests that need no server
	$(BIN)/python -m pytest tests/unit

bench: $(STAMP) ## measure the engine's overhead, the simulation, and promote against bare hvac; prints the machine
	$(BIN)/python tests/benchmarks/bench_engine.py
	$(BIN)/python tests/benchmarks/bench_simulation.py
	$(BIN)/python tests/benchmarks/vault.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test platforms ## everything that CI runs: ruff, mypy --strict, every test

lock: ## resolve the dependencies anew, with hashes and without addresses
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip-tools
	for target in dev runtime; do \
	  extras=$$( [ $$target = dev ] && echo '--extra=sandbox --extra=dev' ); \
	  $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host $$extras \
	    --output-file requirements/$$target.txt pyproject.toml; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .sandbox-tests
