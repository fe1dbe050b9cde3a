# `make demo` and `make test` are the README's first screen; both make .venv where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint

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

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
