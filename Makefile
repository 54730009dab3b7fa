# make install   a virtual environment in .venv with the package and all extras
# make demo      the whole way from raw data to a report, on a generated data set: demo/report.html
# make test      the test suite
# make test-slurm  the tests on a SLURM cluster of one node, which is started here (Debian: apt install slurm-wlm munge, as root)
# make bench     seconds of every network on this machine's CPU, and ratios: under 10 minutes
# make lint      style and types

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# Threads that wait actively take the cores from those that still work.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test test-slurm bench lint clean

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[swinunetr,test,lint]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/nnunet-glims demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slurm"

test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slurm

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.cpu --repeats 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist demo *.egg-info
