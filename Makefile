# Needs Python 3.11 to 3.13, git and make. Everything is installed in .venv, whatever environment is active.
# PYTHON=python3.12 and GPU=1 (GPU=0: none) are chosen once: the last set-up's choice holds until another is made.
-include .venv/chosen.mk
PYTHON ?= python3
LOCK := $(if $(filter-out 0,$(GPU)),requirements-gpu.txt,requirements.txt)
PYTEST_ON_TWO := python -m pytest --numprocesses 2 --dist loadfile
# With its default shell, macOS's make 3.81 ignores the PATH of the next line.
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH CONDA_PREFIX

.PHONY: setup setup-export setup-ray run repro test test-slow test-faults test-servers lint bench ui lock clean

setup: .venv/installed

ifneq ($(CHOSEN),$(PYTHON) $(LOCK) $(CURDIR))
.PHONY: .venv/installed
endif
ifneq ($(or $(FOLDER),$(CURDIR)),$(CURDIR)) # moved or copied: the programs in .venv/bin name the old folder
RENEW := rm -rf .venv
endif
# The interpreter is looked for outside .venv; another one than the environment's makes the environment anew.
# uv installs a locked environment in seconds; it is itself in the lock, so pip can check its hash.
.venv/installed: $(LOCK)
	@set -e; PATH=$$(echo "$$PATH" | tr : '\n' | grep -vxF "$$PWD/.venv/bin" | paste -s -d : -); \
	$(PYTHON) -c '' || { echo 'error: $(PYTHON) does not run; choose another Python with: make setup PYTHON=python3.12' >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"error: Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}; choose another with: make setup PYTHON=python3.12")'; \
	$(PYTHON) -c 'import ensurepip, venv' || { echo 'error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }; \
	which='import sys; print(sys.version, sys.base_prefix)'; \
	$(or $(RENEW),:); test "$$(.venv/bin/python -c "$$which" 2>/dev/null)" = "$$($(PYTHON) -c "$$which")" || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) > .venv/uv.txt
	python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	uv pip sync --quiet --python .venv --compile-bytecode --require-hashes $(LOCK)
	@printf '%s\n' 'PYTHON ?= $(PYTHON)' 'GPU ?= $(GPU)' "FOLDER := $$(pwd -P | sed 's/[$$]/&&/g; s/#/\\#/g')" 'CHOSEN = $(PYTHON) $(LOCK) $$(FOLDER)' > .venv/chosen.mk
	@touch $@

setup-export: setup ## also what ONNX files need, and TFLite Micro
	uv pip install --quiet --python .venv --compile-bytecode --require-hashes -r requirements-export.txt

setup-ray: setup ## also Ray, for training runs on a cluster
	uv pip install --quiet --python .venv --compile-bytecode --require-hashes -r requirements-ray.txt

run: setup ## show the recorded results, then train three models on a part of the data, in minutes
	@echo 'The recorded results as a page: $(CURDIR)/report/index.html'; echo
	python -m pipeline.compare --show
	MLFLOW_EXPERIMENT_NAME=quick python -m pipeline.workspace quick --overlay params.quick.yaml
	@echo; echo 'See the curves:  make ui   (experiment "quick")'
	@echo 'These quick results as a page: $(CURDIR)/.workspaces/quick/report/index.html'

repro: setup ## the full job
	dvc repro

test: setup ## in minutes
	$(PYTEST_ON_TWO) -m "not slow"

test-slow: setup ## the rest, but faults
	$(PYTEST_ON_TWO) --no-loadscope-reorder -m "slow and not faults" -rs

test-servers: setup ## of the rest, what needs PostgreSQL; skipped without it
	python -m pytest -m servers -rs

test-faults: setup ## killed, starved and misled training runs, full disks, failing stores: about 10 minutes
	KILLS=20 python -m pytest -m faults -rs

lint: setup
	ruff check . && ruff format --check . && mypy && oxlint --quiet pipeline/report/page/scripts

bench: setup ## training throughput beside stock Keras and, where it is installed, PyTorch
	python -m benchmarks.throughput

ui: setup ## MLflow's pages, with the addresses of all curves
	python -m pipeline.ui

lock: setup ## after a change of dependencies in pyproject.toml
	uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --extra dev pyproject.toml -o requirements.txt
	uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --extra dev --extra gpu -c requirements.txt pyproject.toml -o requirements-gpu.txt
	python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["export"], sep="\n")' | \
	    uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements.txt - -o requirements-export.txt
	python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ray"], sep="\n")' | \
	    uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements.txt - -o requirements-ray.txt

clean: ## workspaces, with what interrupted sweeps and `mlflow run` have not finished, and caches; records and the store stay
	rm -rf .workspaces .pytest_cache .mypy_cache .ruff_cache .hypothesis
