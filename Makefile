# Everything works from a bare clone: each target sets up what it needs first, once. `make help` lists them.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore
MODEL := smollm2:135m
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

MINUTES := 10

.DEFAULT_GOAL := help
.PHONY: help demo test test-all coverage model lint kernels abi guests bench reference onnx-models fuzz soak clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: $(VENV)/.run ## a sandboxed guest answers a question with a real model, and the counters show that nothing was copied
	@$(BIN)/wasmetal pull $(MODEL) >/dev/null
	$(BIN)/wasmetal chat $(MODEL) --greedy --max-tokens 64 --counters -p "What is a computer? Answer in one sentence."

test: $(VENV)/.test lint model ## lint, types, the tests on all cores
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test lint model ## the same, with the slow tests (generated files are current), more examples for each property
	$(PYTEST) --hypothesis-profile all

coverage: $(VENV)/.test model ## which lines and branches the tests of `make test` run
	$(PYTEST) --cov --cov-report term:skip-covered -m "not slow"

model: $(VENV)/.run
	$(BIN)/wasmetal pull $(MODEL) || echo "the tests that need the model are skipped"

lint: $(VENV)/.test ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

kernels: $(VENV)/.test ## recompile what is in C and Slang (kernels, ONNX Runtime's allocator) into its generated/
	$(BIN)/python -m wasmetal.kernels.compile
	$(BIN)/python -m wasmetal.device.cpu.compile
	$(BIN)/python -m wasmetal.nn.onnx.compile

abi: $(VENV)/.test ## regenerate wasmetal.h and the witx files into src/wasmetal/sdk
	$(BIN)/python -m wasmetal.host.abi

guests: $(VENV)/.test ## rebuild guests/*.wasm
	$(BIN)/python guests/build.py

bench: $(VENV)/.run ## all benchmarks
	$(PIP) --editable '.[onnx]'
	$(BIN)/wasmetal pull $(MODEL)
	for what in zerocopy dispatch instantiate nn llm actor; do $(BIN)/wasmetal bench $$what || exit; done

reference: $(VENV)/.reference ## logits and greedy ids against transformers in float32 (installs PyTorch)
	$(BIN)/python tests/reference/make_reference.py "$$($(BIN)/wasmetal pull $(MODEL))" --check --device cpu
	$(BIN)/python tests/reference/check_architectures.py --device cpu
	$(BIN)/python tests/reference/check_hf_folders.py --device cpu
	$(BIN)/python -m tests.reference.check_chat_templates
	$(BIN)/python tests/reference/check_embeddings.py --device cpu
	$(BIN)/python tests/reference/check_hf_embeddings.py --device cpu

onnx-models: $(VENV)/.onnx-models ## guests run three real ONNX models as the packages that have them do (130 MB of packages)
	WASMETAL_REQUIRE_ONNX_MODELS=1 $(BIN)/python -m pytest tests/nn/test_real_models.py

fuzz: $(VENV)/.test ## hostile inputs at random, for MINUTES=10 in all; what is found goes to build/fuzz
	$(BIN)/python -m tests.fuzz all --minutes $(MINUTES)

soak: $(VENV)/.test ## honest guests beside hostile ones, for MINUTES=10: results stay right, and nothing grows
	$(BIN)/python -m tests.fuzz.soak --minutes $(MINUTES)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Set-up, remembered by a stamp each: system packages and the package (run), the tools too (test), PyTorch too (reference).
$(VENV)/.run: pyproject.toml scripts/system_packages.py
	@test -n "$(PYTHON)" || { echo "wasmetal needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python3)"; exit 1; }
	$(PYTHON) scripts/system_packages.py run
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PYTHON) scripts/system_packages.py test
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.onnx-models: $(VENV)/.test
	$(PIP) --editable '.[onnx-models]'
	$(PIP) --no-deps rapidocr-onnxruntime==1.4.4
	@touch $@

$(VENV)/.reference: $(VENV)/.test
	$(PIP) --editable '.[reference]'
	@touch $@
