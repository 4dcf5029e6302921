# The commands of this project. Each makes .venv first where it is missing or older than the pins.
SHELL := /bin/bash
.DELETE_ON_ERROR:

# The newest interpreter that the pins were made for; PYTHON=... overrides.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# The programs that `cmd` lines of dvc.yaml name come from .venv, and no library sends telemetry.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export GX_ANALYTICS_ENABLED ?= false
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= true
export MLFLOW_DISABLE_TELEMETRY ?= true
export HF_HUB_DISABLE_TELEMETRY ?= 1

FAST := $(addprefix tests/vocabgraft/,config data importers index planning storage tokens) tests/test_contract.py tests/test_docs.py
# These train.
FAST += $(addprefix --ignore=tests/vocabgraft/config/test_,peft_methods.py losses.py evaluators.py)

.PHONY: run ui schedule sweep deps docs test test-fast test-slow lint bench bench-orchestration remote remote-s3 remote-ssh push pull lock clean help

help: ## list the commands
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

run: $(VENV)/.installed ## run the pipeline under Prefect; ARGS="--help" lists its options
	vocabgraft run $(ARGS)

ui: $(VENV)/.installed ## serve MLflow, Prefect and a page to type queries in on 127.0.0.1 until Ctrl-C
	@vocabgraft ui $(ARGS)

schedule: $(VENV)/.installed ## run the pipeline every night; ARGS='--cron "0 3 * * *"', ARGS="--help" lists its options
	vocabgraft schedule $(ARGS)

sweep: $(VENV)/.installed ## run the grid of sweep.yaml; ARGS="--jobs 4", ARGS="--ray ADDRESS"
	vocabgraft sweep sweep.yaml $(ARGS)

deps: $(VENV)/.installed ## write the code deps of dvc.yaml from the import graph
	python -m flows.commands.code_deps

docs: $(VENV)/.installed-test ## build the documentation site into build/site; no page asks another host
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

test: $(VENV)/.installed-test ## run the tests in two processes (about 11 minutes on 2 cores)
	@# One thread a process: two that share a core wait for each other.
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(VENV)/.installed-test ## run the tests that take no training, for the edit loop (under a minute)
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n 2 --dist loadfile $(FAST) $(ARGS)

test-slow: $(VENV)/.installed-test ## run the tests that take longer
	python -m pytest -m slow $(ARGS)

lint: $(VENV)/.installed-test ## style, types and import rules
	ruff check .
	ruff format --check .
	mypy
	lint-imports

bench: $(VENV)/.installed ## measure the whole chain on the shipped example
	python -m benchmarks.whole_chain $(ARGS)

bench-orchestration: $(VENV)/.installed ## measure what the flow costs beside dvc repro
	python -m benchmarks.orchestration $(ARGS)

remote: $(VENV)/.installed ## make URL=... (a folder, s3://..., ssh://...) the place where data and models are shared
	@test -n "$(URL)" || { echo 'give it a place: make remote URL=/mnt/share/vocabgraft (or s3://bucket/path, ssh://host/path)'; exit 1; }
	dvc remote add --default --force store "$(URL)"

remote-s3: $(VENV)/.installed ## install what an s3:// remote needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "dvc[s3]"

remote-ssh: $(VENV)/.installed ## install what an ssh:// remote needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "dvc[ssh]"

push: $(VENV)/.installed ## give data, models and the run cache to the remote
	dvc push --run-cache

pull: $(VENV)/.installed ## bring data, models and the run cache from the remote
	dvc pull --run-cache

lock: ## resolve the whole tree anew and write constraints.txt and constraints.hashes.txt
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet -e ".[test]"
	{ sed -n '/^#/p' constraints.txt; $(VENV)-lock/bin/pip freeze --all --exclude-editable \
		| grep -vE ' @ |^(pip|wheel)==' | sed -E 's/\+[A-Za-z0-9.]+$$//' | LC_ALL=C sort -f; } > constraints.new
	mv constraints.new constraints.txt
	$(VENV)-lock/bin/pip install --quiet --dry-run --ignore-installed --report - -c constraints.txt -e ".[test]" \
		| $(PYTHON) .ci/hashes.py > constraints.hashes.txt
	rm -rf $(VENV)-lock

clean: ## delete what a run made, except the DVC cache and the registry
	rm -rf reports build .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[pipeline]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@
