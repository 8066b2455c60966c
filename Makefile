# Everything a developer, a hook and CI do; each is one word.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup repro foundation test test-slow test-arm64 lint types format
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[host,named,openvino,onnxruntime,loadgen,dev]'
	@touch $@

repro: setup
	$(BIN)/slad repro

# DVC never runs a frozen stage, not even with --force: this runs it beside DVC and notes the result in dvc.lock.
# PAIR is a key of `foundations` in params.yaml; the time stands in configs/foundation/.
PAIR ?= grey32
foundation: setup
	$(BIN)/python -m stages.foundation --params params.yaml --pair $(PAIR) --output artifacts/foundation/$(PAIR)
	$(BIN)/dvc commit --force foundation@$(PAIR)

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

# On an emulated 64-bit Arm device over SSH: four minutes, the first time eight. Needs root and Debian's packages
# qemu-user-static, binfmt-support, debootstrap and openssh-server. What is measured and deployed there is the digits'
# student of `make repro`: without it those tests are skipped, and say so.
test-arm64: setup
	$(BIN)/python -m pytest -m device tests/device

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 -p deploy
	$(BIN)/lint-imports

# TensorRT's own types, of the releases of JetPack 6 and of today, judge what calls it; without a GPU. Downloads 3 MB once.
types: setup
	$(BIN)/python tests/typing/tensorrt_stubs.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
