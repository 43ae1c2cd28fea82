# Signet. `make help` lists the targets; every target does its own set-up and is quick the second time.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "signet: installing the locked Python packages (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: venv
venv: $(STAMP) ## the virtual environment with the locked packages

TLS_MODULE := envoy/tls_module/build/libsignet_tls.so
TLS_SOURCES := $(wildcard envoy/tls_module/*.c envoy/tls_module/*.h) envoy/tls_module/Makefile

$(TLS_MODULE): $(TLS_SOURCES)
	@echo "signet: building the TLS module (once)"
	@tools/parts.sh libssl-dev
	@$(MAKE) --no-print-directory --silent -C envoy/tls_module

.PHONY: parts
parts: ## install the real programs that the whole test suite uses
	@tools/parts.sh

.PHONY: demo
demo: $(STAMP) $(TLS_MODULE) ## the whole loop on a real Envoy, told in some forty lines
	@$(BIN)/python tools/demo.py

.PHONY: up down
up: $(STAMP) $(TLS_MODULE) ## start the local stack (Envoy on 8443, admin on 8080)
	@$(BIN)/python tools/stack.py up

down: $(STAMP) ## stop the local stack
	@$(BIN)/python tools/stack.py down

.PHONY: test test-edge test-slow check bench
PYTEST := $(BIN)/python -m pytest

test: $(STAMP) check $(TLS_MODULE) parts ## the gate: checks, then every test but the long ones
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q -m "not edge and not slow"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --fail-under=90 --include='pch/*'
	@$(BIN)/coverage report --fail-under=90 --include='extproc/*'
	@$(BIN)/coverage report --fail-under=90 --include='receipts/*,policy/*'
	@$(BIN)/coverage report --fail-under=90 --include='kms/*' --omit='kms/proto/*'

test-edge: $(STAMP) $(TLS_MODULE) parts ## the long runs of both edges
	@$(PYTEST) -q -m edge

test-slow: $(STAMP) $(TLS_MODULE) parts ## hundreds of kills, chaos, soak
	@$(PYTEST) -q -m slow

.PHONY: fuzz soak audit sbom
HOURS ?= 0
fuzz: $(STAMP) ## every fuzz target in turn: HOURS=1 over all, a minute each at least
	@SIGNET_FUZZ_HOURS=$(HOURS) $(PYTEST) -q -s -m slow tests/fuzz

soak: $(STAMP) ## the key service under steady load for HOURS=1; its memory and files must not grow
	@SIGNET_SOAK_HOURS=$(HOURS) $(PYTEST) -q -s -m slow tests/faults/test_kms_soak.py

AUDIT := $(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off

audit: $(STAMP) ## look every locked package up among the known vulnerabilities (needs the network)
	@$(AUDIT) -r requirements.lock -r requirements-tpm.lock || { \
	  echo "signet: NOT audited, or not clean: the lines above say which" >&2; exit 1; }

sbom: $(STAMP) ## the bill of materials of every locked package: build/sbom.cdx.json
	@$(BIN)/python tools/sbom.py

check: $(STAMP) ## ruff, mypy strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(STAMP) $(TLS_MODULE) parts ## us and the alternatives in one run, with ratios
	@$(BIN)/python loadtest/bench_loop.py
	@$(BIN)/python loadtest/bench_edge.py
	@$(BIN)/python loadtest/bench_proof.py
	@$(BIN)/python loadtest/bench_bodies.py
	@$(BIN)/python loadtest/bench_relax.py
	@$(BIN)/python loadtest/bench_store.py
	@$(BIN)/python loadtest/bench_kms.py
	@$(BIN)/python loadtest/bench_log.py
	@$(BIN)/python loadtest/bench_stress.py

.PHONY: chaos pilot
chaos: $(STAMP) $(TLS_MODULE) parts ## the catalogue of fault experiments; report in var/chaos
	@$(BIN)/python loadtest/chaos.py

pilot: $(STAMP) $(TLS_MODULE) parts ## the five-day pilot in minutes, with its scorecard
	@$(BIN)/python loadtest/pilot.py

.PHONY: policy
policy: $(STAMP) ## compile policy/shield.rego after a change (needs OPA)
	@$(BIN)/python tools/policy_bundle.py

.PHONY: clean
clean: ## remove what the targets made
	@test ! -f var/stack.json || $(BIN)/python tools/stack.py down
	@rm -rf var build .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(VENV)
	@$(MAKE) --no-print-directory --silent -C envoy/tls_module clean
