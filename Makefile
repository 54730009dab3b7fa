# make install       a virtual environment in .venv with the package and all extras
# make demo          the whole way from raw data to a report, on a generated data set: demo/report.html
# make test          the test suite
# make test-long     the tests that take too long for every change; they need the package index
# make test-slurm    the tests on a SLURM cluster of one node, which is started here (Debian: apt install slurm-wlm munge, as root)
# make test-lowest   the quick tests in .lowest, an environment with the lowest versions that pyproject.toml admits
# make coverage      the test suite, and which lines it runs: htmlcov/index.html
# make docs          the documentation, in site
# make bench         seconds of every network on this machine's CPU, and ratios: under 10 minutes
# make reliability   damage, kill and starve every command, and count what survives: about 25 minutes
# make lint          style, and types for the lowest and the highest Python

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# Threads that wait actively take the cores from those that still work.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test test-long test-slurm test-lowest coverage docs bench reliability lint clean

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[test,docs,lint]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/nnunet-glims demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slurm and not long"

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slurm

test-lowest: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_floors.py -m long -k lowest_and_a_highest
	$(BIN)/python -m tests.environments .lowest

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slurm and not long" --cov --cov-report=term:skip-covered --cov-report=html

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.cpu --repeats 2

reliability: $(INSTALLED)
	$(BIN)/python -m benchmarks.reliability

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff check --target-version py313 --ignore UP .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --python-version 3.10
	$(BIN)/mypy --python-version 3.13

clean:
	rm -rf .venv .lowest build dist demo site htmlcov *.egg-info
