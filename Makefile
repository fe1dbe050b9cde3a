# `make demo` and `make test` are the README's first screen; both make .venv where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint audit oldest

demo: $(BIN)/python
	$(BIN)/python -m pip install --quiet .
	$(BIN)/mtlbench run --method disparse-static --dataset nyuv2

test: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pytest --numprocesses 2

lint: $(BIN)/python
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml mtlprune_bench plugins cli.py

audit: $(BIN)/python
	$(BIN)/pip-audit --strict --skip-editable --progress-spinner off

oldest: $(BIN)/python
	$(BIN)/uv venv --quiet --seed --python $(BIN)/python $(VENV)/oldest
	$(BIN)/uv pip install --quiet --python $(VENV)/oldest --resolution lowest-direct --editable '.[dev]'
	$(VENV)/oldest/bin/python -m pytest --numprocesses 2 -m 'not slow and not faults and not fuzz'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
