# make quickstart   warm start, two runs, evaluation, a table and a picture (runs/quickstart)
# make test         the tests
# Both make .venv and install into it; the second time they start at once.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Threads of a tiny model on a few busy cores only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test lint clean

quickstart: $(STAMP)
	$(BIN)/equipoise quickstart

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

clean:
	rm -rf $(VENV)
