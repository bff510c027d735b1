# make demo, make test: each sets itself up on a fresh machine (a virtual environment in .venv, made once).
PYTHON ?= python3
BIN := .venv/bin
DATA := datasets/moving_digits/data
RUN := runs/demo_motion

.PHONY: help demo test lint check-configs docs-figures mutants clean

help:
	@echo "make demo           make the demo videos, train on them, test, predict, draw (minutes on 2 CPU cores)"
	@echo "make test           run the test suite"
	@echo "make lint           ruff and mypy"
	@echo "make docs-figures   measure the tables of docs/ again and print them (many hours; PAGES=inference for one page)"
	@echo "make check-configs  load every YAML of configs/ strictly and build its model"
	@echo "make mutants        how many of a list of small faults the tests notice (an hour; tests/mutants.py --help)"
	@echo "make clean          remove .venv, runs/ and the demo videos"

# The stamp is newer than the files that name the dependencies, or the installation is done again.
.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test,dev]"
	@touch $@

demo: .venv/installed
	$(BIN)/python datasets/moving_digits/prepare.py --out $(DATA)
	$(BIN)/python tools/run_net.py --cfg configs/demo_motion.yaml OUTPUT_DIR $(RUN)
	$(BIN)/python tools/predict.py --checkpoint $(RUN)/model.pt --topk 3 --json $(RUN)/predictions.jsonl \
	  --draw $(RUN)/sheets $(foreach n,0 1 2 3,$(DATA)/videos/test/0000$(n).mp4)
	@echo
	@echo "Done. Look at:"
	@echo "  $(RUN)/curves.png             loss and validation accuracy"
	@echo "  $(RUN)/confusion_matrix.png   what is taken for what, on the test videos"
	@echo "  $(RUN)/sheets/*.png           four test videos: frames, attention, answer"
	@echo "  $(RUN)/test_results.json      accuracy; test_predictions.csv: each video's answer"
	@echo "  $(RUN)/model.pt               the trained model, for tools/predict.py"

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-configs: .venv/installed
	$(BIN)/python tools/check_configs.py configs/*.yaml

docs-figures: .venv/installed
	$(BIN)/python tools/docs_figures.py $(PAGES)

mutants: .venv/installed
	$(BIN)/python -m tests.mutants

clean:
	rm -rf .venv runs $(DATA)
