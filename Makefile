# Two commands on a fresh machine: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo test check lint types tests bench clean

demo: $(VENV)/.run
	$(BIN)/python -m benchmarks.demo

test: check

check: lint types tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

tests: $(VENV)/.dev
	$(BIN)/pytest

# The figures of docs/benchmarks.md; needs an otherwise idle machine.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.all

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  $(AS_ROOT) apt-get -qq update && $(AS_ROOT) apt-get -qq install -y python3-venv && $(PYTHON) -m venv $(VENV); }

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

# The tests look at pages in a real browser and at weights that torch wrote.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[train,msgpack,dev]'
	command -v chromium >/dev/null || { \
	  $(AS_ROOT) apt-get -qq update && $(AS_ROOT) apt-get -qq install -y --no-install-recommends chromium; }
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .demo .bench .mypy_cache .ruff_cache .pytest_cache
