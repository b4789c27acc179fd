# The two commands of the README: each works on a fresh clone with only Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-all lint types help

demo: $(READY) ## train on a synthetic log, print metrics and the statement
	$(BIN)/dpads demo

test: lint types ## everything that must be green before a commit lands
	$(BIN)/python -m pytest -n 2 --dist worksteal # stretches of tests share stores and compiled code

test-all: lint types ## and the slow tests: real data, peers, statistical power
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

# torch goes first: the rest then builds on the version that constraints.txt names.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "dpads needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@echo "Installing dpads and what it needs into .venv: about 2.3 GB (more with a CUDA build of torch), some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps deepctr-torch==0.3.0
	touch $(READY)

help: ## what each command does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'
