# Everything a developer, a hook and CI do; each is one word.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup repro foundation test test-slow lint format
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[host,openvino,onnxruntime,dev]'
	@touch $@

repro: setup
	$(BIN)/slad repro

# DVC never runs a frozen stage, not even with --force. About 30 minutes.
foundation: setup
	PATH="$(abspath $(BIN)):$$PATH"; dvc unfreeze foundation && dvc repro --force --single-item foundation; \
	    code=$$?; dvc freeze foundation; exit $$code

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
