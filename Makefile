# Two commands from a fresh clone: `make demo` and `make test`. Both set up .venv first; the second time they don't.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_ARGS ?=
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format docs bench plans clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## set up .venv with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "== setting up $(VENV) (once; a minute or two)"
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is needed (Debian: apt install python3-venv)"; exit 1; }
	@# torch first and alone, so that the pinned build is there before anything else asks for one
	@echo "== installing torch"; $(BIN)/pip install -q -c constraints.txt $(PIP_ARGS) torch numpy
	@echo "== installing the rest"; $(BIN)/pip install -q -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	@touch $@
	@printf '%s\n' "installed. What next:" \
	  "  make demo                   an ablation of real text, from training to its report" \
	  "  make test                   the tests" \
	  "  source $(VENV)/bin/activate; ablate list    the questions on the agenda, and what is recorded of them"

demo: $(STAMP)  ## run the quick size of the `balance` ablation on real text and write its report
	@$(BIN)/ablate run balance --size quick
	@$(BIN)/ablate report balance --size quick

test: $(STAMP)  ## run the tests of every package, without slow ones and without services (5 minutes)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow and not service'

# The limit finds what hangs or has outgrown its purpose. No test takes a minute on two idle cores, most of the slow ones
# half of one; a slow or busy machine needs twice as long, which is the limit. A test of more than half of it is named, but doesn't fail.
test-all: $(STAMP)  ## run all tests, Slurm, PostgreSQL and a browser included where they are installed (14 minutes)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 20 --limit=120

format: $(STAMP)  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP)  ## format, lint, types, import contracts, plans of all ablations
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory plans

docs: $(VENV)/.docs  ## build the documentation as a site, in site/
	$(BIN)/python -m tests.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(VENV)/.docs: $(STAMP)
	@$(BIN)/pip install -q -c constraints.txt $(PIP_ARGS) -e '.[docs]'
	@touch $@

bench: $(STAMP)  ## time the model beside its peers (some minutes; on an idle machine)
	@$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

plans: $(STAMP)  # every declared ablation, in every size that it declares
	$(BIN)/ablate list --names | while read -r name size; do \
	  echo "== plan $$name $$size"; $(BIN)/ablate plan $$name --size $$size --no-calibration || exit 1; done

clean:  ## remove .venv and caches (not runs/)
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
