# make quickstart: train on generated images; make test: everything CI checks.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart two_process test peers lock

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

# Two processes, one device each, talk over gloo: the paper's two GPUs.
two_process: setup
	launch/two_process.sh --workdir=runs/two_process --config.layout=towers \
	  --config.total_steps=40 --config.log_every_steps=10

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses=2 --dist=loadfile

# torch, onnx and onnxruntime, which some tests compare with; else skipped.
peers: setup
	$(BIN)/pip install --quiet --no-build-isolation -c requirements.lock -e '.[peers]'

# Pins what the newest releases resolve to, in a clean environment.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet '.[dev]' 'setuptools>=77,<82'
	.venv-lock/bin/pip freeze --all --exclude pip --exclude alexnet-jax > requirements.lock
	rm -rf .venv-lock
