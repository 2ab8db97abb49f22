# `make` or `make help` lists the commands. Each makes what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test soak check bench format clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(VENV)/installed ## work through the twelve bundled papers: reports in results/
	$(BIN)/python run.py machines/launcher.yml

test: $(VENV)/tested ## run all tests, the slow ones too
	$(BIN)/pytest -n 2 --dist worksteal

soak: $(VENV)/tested ## the promises in their long form, half an hour at most
	$(BIN)/python tests/soak.py

check: $(VENV)/tested ## lint, types, machine files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/flatfleet
	cd $(VENV)/src && ../bin/mypy --config-file "$(CURDIR)/pyproject.toml" -p flatfleet.hooks -p flatfleet.commands -p flatfleet.runtime
	$(BIN)/flatfleet check machines agents

bench: $(VENV)/benched ## measure beside the SDK and four task queues, about an hour: see docs/performance.md
	$(BIN)/python -m benchmarks

format: $(VENV)/tested ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, caches, and what a demo left
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis fleet.db fleet.db-wal fleet.db-shm results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flatfleet needs Python 3.11 or later; this is " + sys.version + ". Name another: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/benched: $(VENV)/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

$(VENV)/tested: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/installed
