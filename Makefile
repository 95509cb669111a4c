# Two targets matter: `make nightly` runs the whole factory on the built-in shop, `make test` proves it.
# `make up` keeps an installation of it running on this machine, `make down` stops it; UP="--timezone Europe/Berlin".
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := deployments/constraints.txt

.PHONY: nightly up down test lint lock clean

nightly: $(VENV)/.ready
	$(BIN)/recsys nightly

up: $(VENV)/.ready
	$(BIN)/recsys up $(UP)

down: $(VENV)/.ready
	$(BIN)/recsys down

# One test process and one thread a core: more of either only wait for each other. Bytecode is kept: many tests start processes.
test: $(VENV)/.ready lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 RECSYS_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The environment is whole or absent: .ready is written last.
$(VENV)/.ready: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(LOCK) -e '.[flows,minilm,lora,dask,dev]'
	touch $@

# Renews the lock: resolves pyproject's bounds in an empty environment and writes what was chosen.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet torch==2.13.0 -e '.[flows,minilm,lora,servers,kubernetes,dask,dev]'
	{ sed -n '/^#/p' $(LOCK); $(VENV)-lock/bin/pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > $(LOCK).new
	mv $(LOCK).new $(LOCK)
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) *.egg-info
