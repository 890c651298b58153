# `make demo` and `make test` work on a fresh clone with Python 3.10 or newer. The demo makes .venv-demo, without PyTorch;
# everything else makes .venv, with all that developing needs.

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
DOCS_VENV ?= .venv-docs
BIN := $(VENV)/bin
OLDEST_VENV ?= .venv-oldest
# Tests at a time. Each takes 2 GB at most.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-fast test-all test-oldest coverage lint docs clean

demo: $(DEMO_VENV)/installed
	$(DEMO_VENV)/bin/python examples/demo.py

test: lint
	$(PYTEST) -m "not exhaustive"

# While working: neither the linters nor the slow tests.
test-fast: $(VENV)/installed
	$(PYTEST) -m "not slow and not exhaustive" --hypothesis-profile fast

# With thousands of damaged inputs and a kill at every step: an hour.
test-all: lint
	$(PYTEST) --hypothesis-profile exhaustive

# On the oldest dependencies that pyproject.toml admits; Python 3.10 and 3.11 have wheels of all of them.
test-oldest: $(OLDEST_VENV)/installed
	$(OLDEST_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not exhaustive" --hypothesis-profile fast

coverage: $(VENV)/installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(JOBS) --dist worksteal -m "not exhaustive"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# The site, in site/; it needs no network to read.
docs: $(DOCS_VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

$(VENV)/installed: PACKAGES = --editable . --group dev
$(DEMO_VENV)/installed: PACKAGES = --editable '.[cpu,io]' nilearn
$(DOCS_VENV)/installed: PACKAGES = --editable . --group docs
$(OLDEST_VENV)/installed: PACKAGES = --editable . --group dev --constraint tests/oldest.txt
$(OLDEST_VENV)/installed: tests/oldest.txt

$(VENV)/installed $(DEMO_VENV)/installed $(DOCS_VENV)/installed $(OLDEST_VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "SAMRI needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet $(PACKAGES)
	touch $@

clean:
	rm -rf $(VENV) $(DEMO_VENV) $(DOCS_VENV) $(OLDEST_VENV) .coverage .coverage.* site demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
