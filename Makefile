# One command for everything. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
DATA ?= data

.DEFAULT_GOAL := help
.PHONY: help demo smoke study test test-fast test-peft mutants browser fuzz lint fix docs clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | awk -F'|' '{printf "  make %-9s %s\n", $$1, $$2}'

# The environment is rebuilt when its requirements change.
$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.made  ## train and evaluate on real models and data: about ten minutes
	$(BIN)/perceptune demo --run $(RUN)

smoke: $(VENV)/.made  ## the demo, shortened to about two minutes
	$(BIN)/perceptune demo --smoke --run runs/smoke

study: $(VENV)/.made  ## test the papers' claims on real data in DATA: about six hours, resumable
	$(BIN)/python studies/run.py $(DATA) --jobs 2
	$(BIN)/python studies/write.py

COST ?=
test: $(VENV)/.made  ## all tests, in two processes; COST=FOLDER measures processor seconds per test
	OMP_NUM_THREADS=1 $(if $(COST),PYTHONPATH=tests) $(BIN)/python -m pytest -q -n 2 --dist worksteal $(if $(COST),-p cost --cost $(COST))

test-fast: $(VENV)/.made  ## fast unit tests, and methods against a literal implementation of the paper
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --fast tests/unit tests/contract/test_literal.py

test-peft: $(VENV)/.made  ## PEFT's own tests with DMA, fetched from the package index
	OMP_NUM_THREADS=1 $(BIN)/python tests/peft_suite.py

mutants: $(VENV)/.made  ## apply one-line faults and check that a test fails for each
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --jobs 2

browser: $(VENV)/.made  ## tests of the web page in Chromium, installed if missing (Debian, Ubuntu)
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || apt-get install -y chromium chromium-driver
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 0
FUZZ := $(CURDIR)/$(VENV)/fuzz
fuzz: $(VENV)/.made  ## send damaged media and requests for FUZZ_SECONDS each, seeded by FUZZ_SEED
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --target $(FUZZ) --upgrade 'schemathesis>=4'
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/media.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)
	OMP_NUM_THREADS=1 PYTHONPATH=$(FUZZ) $(BIN)/python tests/fuzz/api.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

lint: $(VENV)/.made  ## the checks of continuous integration besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pylint --disable=all --enable=duplicate-code --min-similarity-lines=9 src

fix: $(VENV)/.made  ## apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.docs: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## rewrite the generated parts of the documentation and build the site in site/
	$(BIN)/python tests/docs/generated.py --write
	$(BIN)/python tests/docs/pages.py
	rm -rf site
	$(BIN)/zensical build --strict

clean:  ## remove the environment, the site and all runs
	rm -rf $(VENV) site build .cache runs
