# make demo, make test: each sets itself up on a fresh machine (a virtual environment in .venv, made once).
PYTHON ?= python3
BIN := .venv/bin
DATA := datasets/moving_digits/data
RUN := runs/demo_motion

.PHONY: help demo test lint check-configs docs-figures mutants clean

help:
	@echo "make demo           make the demo videos, train on them, test, predict, draw (minutes on 2 CPU cores)"
	@echo "make test           run the test suite, on up to 4 cores"
	@echo "make lint           ruff and mypy"
	@echo "make docs-figures   remeasure the tables of docs/ and print them (many hours; PAGES=inference for one page)"
	@echo "make check-configs  load every YAML of configs/ strictly and build its model"
	@echo "make mutants        how many of a list of small faults the tests detect (an hour; tests/mutants.py --help)"
	@echo "make clean          remove .venv, runs/ and the demo videos"

# Where pip finds torch; empty: PyPI, whose torch for Linux brings the libraries for GPUs.
TORCH_INDEX ?=
INSTALL = $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --upgrade pip && \
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet torch torchvision --index-url $(TORCH_INDEX) &&) \
	$(BIN)/python -m pip install --quiet --editable

# The installation is repeated when a file that names the dependencies is newer than its stamp.
.venv/demo: setup.cfg setup.py pyproject.toml
	@echo "Installing what the demo needs into .venv: about 6 GB with PyPI's torch for Linux, which brings the libraries for"
	@echo "GPUs. Without a GPU, about 1.5 GB are enough: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	$(INSTALL) .
	@touch $@

.venv/installed: setup.cfg setup.py pyproject.toml
	$(INSTALL) ".[test,dev]"
	@touch $@

demo: .venv/demo
	$(BIN)/lookupvit demo --data $(DATA) --out $(RUN)

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-configs: .venv/installed
	$(BIN)/lookupvit check-configs configs/*.yaml

docs-figures: .venv/installed
	$(BIN)/python tools/docs_figures.py $(PAGES)

mutants: .venv/installed
	$(BIN)/python -m tests.mutants

clean:
	rm -rf .venv runs $(DATA)
