# Every verb sets up .venv first if it must; CI calls the same verbs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := $(VENV)/.installed
PEERS := .venv-peers
ARGS ?=

.PHONY: help run test ci test-all golden lint format list readme tables reproduce bench peers

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP) ## run an experiment: make run ARGS="algo=ewc backend=jax"
	@$(BIN)/python run.py $(ARGS)

# One thread: with another busy process, two threads on two cores are many times slower.
test: $(STAMP) ## run the tests: make test ARGS="tests/conf -x"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

ci: $(STAMP) ## run the tests that start many processes or compile for long: kills, searches, SLURM
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "ci and not full" -n auto --dist loadfile $(ARGS)

test-all: $(STAMP) ## run the full matrices too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -n auto --dist loadfile $(ARGS)

golden: $(STAMP) ## write the golden loss curves anew, after a change that should move numbers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n0 -q tests/parity -k golden --write-golden

lint: $(STAMP) ## check style and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(STAMP) ## sort imports and format the code
	$(BIN)/python -m ruff check --select I --fix
	$(BIN)/python -m ruff format

list: $(STAMP) ## list everything that can be composed
	@$(BIN)/python -m seqrun.cli.listing

readme: $(STAMP) ## write that list into README.md
	@$(BIN)/python -m seqrun.cli.listing --readme README.md

tables: $(STAMP) ## measure every algorithm: make tables ARGS="--search --algorithms er"
	$(BIN)/python bench/tables.py $(ARGS)

reproduce: $(STAMP) ## run reproductions: make reproduce ARGS="--only 'hsu2018/*'"
	$(BIN)/python -m seqrun.reproductions $(ARGS)

bench: $(STAMP) ## measure speed: make bench ARGS="--only training" (ARGS=--help names the parts)
	$(BIN)/python bench/run.py $(ARGS)

peers: $(PEERS)/.installed ## install what make bench compares with, into .venv-peers

# Made again only when what is to be installed has changed.
$(STAMP): setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11 or newer as $(PYTHON): make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer, but $(PYTHON) is older: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# They see .venv's packages through a .pth file, so that every library runs on the same frameworks.
$(PEERS)/.installed: $(STAMP) bench/peers/requirements.txt
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r bench/peers/requirements.txt
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$site" > "$$($(PEERS)/bin/python -c "$$site")/base.pth"
	@touch $@
