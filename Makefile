# make demo   install, run the main job on toy data, show where the report is
# make test   install, run the tests
# make lint   ruff and mypy
# make bench  the speed comparisons that need no GPU (benchmarks/*_cuda.py need one)

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

bench: .venv/.installed-bench
	$(BIN)/python benchmarks/densecrf.py
	$(BIN)/python benchmarks/threshold_curve.py
	$(BIN)/python benchmarks/random_walk_affinitynet.py
	$(BIN)/python benchmarks/affinity_loss.py
	$(BIN)/python benchmarks/random_walk_irnet.py
	$(BIN)/python benchmarks/irnet_pair_losses.py --size 512 512
	$(BIN)/python benchmarks/pixel_correlation.py

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
