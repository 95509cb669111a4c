# Two targets matter: `make nightly` runs the whole factory on the built-in shop, `make test` proves it.
# `make up` keeps an installation of it running on this machine, `make down` stops it; UP="--timezone Europe/Berlin".
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := deployments/constraints.txt
LOCKS  := deployments/locks

.PHONY: nightly up down test lint lock verify-lock audit sbom clean

nightly: $(VENV)/.ready
	$(BIN)/recsys nightly

up: $(VENV)/.ready
	$(BIN)/recsys up $(UP)

down: $(VENV)/.ready
	$(BIN)/recsys down

# One thread a process, three processes for two cores (tests/conftest.py). Bytecode is kept: many tests start processes.
test: $(VENV)/.ready lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 RECSYS_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The environment is whole or absent: .ready is written last. What is installed is what the lock has the hash of.
# TORCH=cuda brings the build of torch for GPUs, several GB.
$(VENV)/.ready: pyproject.toml deployments/install.sh $(LOCKS)/development.txt $(LOCKS)/torch-cpu.txt $(LOCKS)/torch-cuda.txt
	$(PYTHON) -m venv $(VENV)
	sh deployments/install.sh development $(BIN)/python -m pip --quiet --disable-pip-version-check
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	touch $@

# Renews the lock: resolves pyproject's bounds in an empty environment, writes what was chosen, then the hashes of its files.
# async-timeout: redis asks for it before Python 3.11.3.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet torch==2.13.0 async-timeout 'setuptools>=77' -e '.[flows,minilm,lora,servers,kubernetes,dask,dev]'
	{ sed -n '/^#/p' $(LOCK); $(VENV)-lock/bin/pip freeze --all --exclude pip --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > $(LOCK).new
	mv $(LOCK).new $(LOCK)
	$(VENV)-lock/bin/python deployments/lock.py
	rm -rf $(VENV)-lock

# Asks the index again: is there any file behind these versions that was not there when the lock was written, or another one?
verify-lock: $(VENV)/.ready
	$(BIN)/python deployments/lock.py --check

# The programs that look at the product are no part of it: an environment of their own, from a lock of their own.
$(VENV)-audit/.ready: deployments/install.sh $(LOCKS)/audit.txt
	$(PYTHON) -m venv $(VENV)-audit
	sh deployments/install.sh audit $(VENV)-audit/bin/python -m pip --quiet --disable-pip-version-check
	$(VENV)-audit/bin/pip check
	touch $@

# Known vulnerabilities of everything in the locks, asked of PyPI's advisory database; it fails where that cannot be asked.
audit: $(VENV)-audit/.ready
	sh deployments/audit.sh $(VENV)-audit/bin/pip-audit

# What each installation consists of, for whoever must account for it: CycloneDX, one file an image, in build/sbom.
sbom: $(VENV)-audit/.ready
	mkdir -p build/sbom
	for name in factory serving servers; do \
		$(VENV)-audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --validate \
			-o build/sbom/$$name.json $(LOCKS)/$$name.txt || exit 1; \
	done

clean:
	rm -rf $(VENV) $(VENV)-audit build/sbom *.egg-info
