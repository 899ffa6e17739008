# make demo: train a small GPT under the profiler.   make test: pass the tests.
# make bench: measure lipprof beside its peers (BENCH=--quick for a first look).
# All set up .venv first; nothing else is needed than Python >= 3.11 and make.

PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo test lint browser screenshots bench clean

demo: .venv/run
	$(BIN)/lipprof demo $(if $(DATA),--data $(DATA))

test: .venv/dev
	$(BIN)/python -m pytest --quiet --numprocesses=auto --dist=worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

browser: .venv/dev
	$(BIN)/python -m pytest --quiet -m browser

screenshots: .venv/dev
	$(BIN)/python docs/screenshots.py

bench: .venv/bench
	$(BIN)/python -m tests.benchmarks $(BENCH)

.venv/run: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	@echo "Installing lipprof into .venv ..."
	$(PIP) --editable .
	@touch $@

.venv/dev: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	@echo "Installing lipprof and its test tools into .venv ..."
	$(PIP) --editable '.[dev]'
	@touch $@

.venv/bench: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	@echo "Installing lipprof and the peers it is measured beside into .venv ..."
	$(PIP) --editable '.[dev,bench]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lipprof needs Python >= 3.11; run make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv run.h5 run.html
