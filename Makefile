# Two commands on a fresh machine: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo test check lint types tests bench fuzz faults soak clean

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

# A million hostile inputs, seeded: about ten minutes. The tests run the same targets for some seconds.
fuzz: $(VENV)/.fuzz
	nice -n 10 $(BIN)/python -m tests.fuzz.run --inputs 1000000 --seed 1

# Every fault a few times and some in pairs, in a quarter of an hour; the table is in .faults/faults.md.
faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults.run --all --times 2 --pairs 10 --jobs 2

# All of docs/reliability.md, in hours; what was tried already is not tried again.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.faults.soak --minutes 30
	$(BIN)/python -m tests.faults.run --all --times 20 --pairs 200
	$(BIN)/python -m tests.faults.hostile --connections 10000 --seed 1

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  $(AS_ROOT) apt-get -qq update && $(AS_ROOT) apt-get -qq install -y python3-venv && $(PYTHON) -m venv $(VENV); }

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

# The tests look at pages in a real browser, at weights that torch wrote, and boot a real systemd in a container.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[train,int8,msgpack,dev]'
	{ command -v chromium && command -v systemd-analyze && command -v systemd-nspawn && command -v ip; } >/dev/null || { \
	  $(AS_ROOT) apt-get -qq update && \
	  $(AS_ROOT) apt-get -qq install -y --no-install-recommends chromium systemd systemd-container iproute2; }
	touch $@ $(VENV)/.run

$(VENV)/.fuzz: $(VENV)/.dev
	$(INSTALL) --editable '.[fuzz]'
	touch $@

clean:
	rm -rf $(VENV) .demo .bench .mypy_cache .ruff_cache .pytest_cache .fuzz
