# make quickstart: train on generated images. make check: style, types and tests
# of the core, in a minute. make test: all of it, as CI runs it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart two_process style check test peers lock

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

quickstart: setup
	$(BIN)/alexnet train --workdir=runs/quickstart
	$(BIN)/alexnet evaluate --workdir=runs/quickstart

# Two processes with one device each, joined by gloo: the paper's two GPUs.
two_process: setup
	launch/two_process.sh --workdir=runs/two_process --config.layout=towers \
	  --config.total_steps=40 --config.log_every_steps=10

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

PYTEST := $(BIN)/pytest --numprocesses=2 --dist=loadfile

check: style
	$(BIN)/pyright alexnet_jax/*.py alexnet_jax/layers alexnet_jax/parallel
	$(PYTEST) -m 'not slow' tests/test_*.py tests/parallel

test: style
	$(BIN)/pyright
	$(PYTEST)

# torch, onnx and onnxruntime: the tests that compare with them are skipped
# where they are not installed.
peers: setup
	$(BIN)/pip install --quiet --no-build-isolation -c requirements.lock -e '.[peers]'

# Pins the newest releases that fit together, from a clean environment.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet '.[dev]' 'setuptools>=77,<82'
	.venv-lock/bin/pip freeze --all --exclude pip --exclude alexnet-jax > requirements.lock
	rm -rf .venv-lock
