# Every target sets up .venv first if needed; CI calls the same targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := $(VENV)/.installed
PEERS := .venv-peers
ARGS ?=

.PHONY: help run test ci test-all parity golden lint format list readme tables reproduce bench peers

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP) ## run an experiment: make run ARGS="algo=ewc backend=jax"
	@$(BIN)/python run.py $(ARGS)

# One thread per process: on busy cores, more threads are many times slower.
test: $(STAMP) ## run the tests: make test ARGS="tests/conf -x"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

ci: $(STAMP) ## run the slower tests: training, compiling, kills, searches, SLURM
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "ci and not full" -n auto --dist loadfile $(ARGS)

test-all: $(STAMP) ## run all tests, also the full matrices
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -n auto --dist loadfile $(ARGS)
	$(if $(ARGS),,$(MAKE) parity)

parity: $(STAMP) ## compare the backends in double precision, to 1e-9: make parity ARGS="-k ewc"
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m pytest -m "" -p parity.double_precision \
		tests/parity/test_parity.py::test_twins_agree_at_every_step -n auto $(ARGS)

golden: $(STAMP) ## rewrite the golden loss curves, after a change that is meant to move numbers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n0 -q tests/parity -k golden --write-golden

lint: $(STAMP) ## check style, format and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(STAMP) ## sort imports and format the code
	$(BIN)/python -m ruff check --select I --fix
	$(BIN)/python -m ruff format

list: $(STAMP) ## list everything that can be composed
	@$(BIN)/python run.py list

readme: $(STAMP) ## update the list in README.md
	@$(BIN)/python run.py list --readme README.md

tables: $(STAMP) ## measure every algorithm: make tables ARGS="--search --algorithms er"
	$(BIN)/python bench/tables.py $(ARGS)

reproduce: $(STAMP) ## run reproductions: make reproduce ARGS="--only 'hsu2018/*'"
	$(BIN)/python -m seqrun.reproductions $(ARGS)

bench: $(STAMP) ## measure speed: make bench ARGS="--only training" (ARGS=--help names the parts)
	$(BIN)/python bench/run.py $(ARGS)

peers: $(PEERS)/.installed ## install the libraries that make bench compares with, into .venv-peers

# Runs again only when the requirements have changed.
$(STAMP): setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11 or newer as $(PYTHON): make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer, but $(PYTHON) is older: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# The peers see .venv's packages through a .pth file, so that all run on the same frameworks.
$(PEERS)/.installed: $(STAMP) bench/peers/requirements.txt
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r bench/peers/requirements.txt
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$site" > "$$($(PEERS)/bin/python -c "$$site")/base.pth"
	@touch $@
