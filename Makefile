# Two commands: `make run` trains privately, `make test` checks everything that is quick to check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROUNDS ?=
ARGS ?=

BENCH_FILE := experiments/results/engine.json

.PHONY: run test test-slow bench lint types format clean

run: $(VENV)/installed-all
	$(BIN)/fedopt run $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

test: lint types
	$(BIN)/pytest -n 2

test-slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow

# Ratios beside the committed ones; what moved by more than 10 % is named.
bench: $(VENV)/installed-all build/pfl/bin/python
	$(BIN)/python -m experiments.benchmarks.engine --quick --pfl build/pfl/bin/python \
		--compare $(BENCH_FILE)

build/pfl/bin/python: | $(VENV)/installed-all
	sh experiments/benchmarks/make_pfl_environment.sh $(BIN)/python build/pfl

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports

types: $(VENV)/installed-test
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "fedopt needs Python 3.11 to 3.13; give one: make PYTHON=python3.12 run"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-all: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed-all
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
