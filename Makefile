# make demo   install, run the main job on toy data, show where the report is
# make test   install, run the tests
# make lint   ruff and mypy
# make bench  the speed comparisons that need no GPU; writes docs/benchmarks.md

PYTHON ?= python3
BIN := .venv/bin
RUNS := runs

.PHONY: demo test lint bench clean

demo: .venv/.installed
	$(BIN)/weakseg data make-toy $(RUNS)/toy-data
	$(BIN)/weakseg run toy --data $(RUNS)/toy-data --out $(RUNS)/toy

# Two processes with one thread each: two threads in each of two busy processes would fight over the cores.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: .venv/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# Nothing else should run meanwhile.
bench: .venv/.installed-bench
	$(BIN)/python benchmarks/report.py

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-%: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,$*]"
	touch $@ .venv/.installed

clean:
	rm -rf .venv $(RUNS)
