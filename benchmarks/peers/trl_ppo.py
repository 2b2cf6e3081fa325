"""TRL 1.12's `PPOTrainer` on prompts and models that the benchmark prepared. Runs in an environment of its own.

`trl_ppo.py MODEL REWARD PROMPTS.jsonl SETTINGS_JSON`: SETTINGS are fields of `PPOConfig`; `lora`, fields of PEFT's
`LoraConfig`; and `save`, a folder for the policy. With what an informed user mends: a padding token that is not the end
token, `stop_token="eos"`, no generation settings of the model's own, no activation checkpointing, and one optimizer
step for all that is accumulated (it takes one for each micro-batch once a pass over the prompts ends). Prints the
seconds of each update by phase, and what it logged.
"""

import json
import sys
import tempfile
import time
from contextlib import contextmanager

from accelerate.state import GradientState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

model_path, reward_path, prompts_path, settings = *sys.argv[1:4], json.loads(sys.argv[4])
lora, save = settings.pop("lora", None), settings.pop("save", None)
peft_config = None
if lora is not None:
    from peft import LoraConfig

    peft_config = LoraConfig(**lora)
tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
with open(prompts_path, encoding="utf-8") as stream:
    rows = Dataset.from_list([{"input_ids": json.loads(line)["input_ids"]} for line in stream])
policy = AutoModelForCausalLM.from_pretrained(model_path)
policy.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
load = AutoModelForSequenceClassification.from_pretrained
reward, value = load(reward_path, num_labels=1), load(reward_path, num_labels=1)
# One after the other; what is not in them is the update.
seconds = {"rollout": 0.0, "scores": 0.0}


@contextmanager
def timed(phase):
    start = time.perf_counter()
    yield
    seconds[phase] += time.perf_counter() - start


def wrap(name, phase, only=lambda args: True):
    own = getattr(ppo_trainer, name)

    def call(*args, **kwargs):
        if not only(args):
            return own(*args, **kwargs)
        with timed(phase):
            return own(*args, **kwargs)

    setattr(ppo_trainer, name, call)


wrap("batch_generation", "rollout")
wrap("get_reward", "scores")
wrap("forward", "scores", lambda args: not hasattr(args[0], "value_model"))  # the reference
trainer = PPOTrainer(
    args=PPOConfig(
        output_dir=tempfile.mkdtemp(), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", num_sample_generations=0, stop_token="eos", disable_tqdm=True, **settings,
    ),
    processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward, value_model=value,
    train_dataset=rows, eval_dataset=rows.select(range(1)), peft_config=peft_config,
)  # fmt: skip
GradientState.end_of_dataloader = property(lambda self: False)
start = time.perf_counter()
trainer.train()
whole = time.perf_counter() - start
seconds["update"] = whole - sum(seconds.values())
if save:
    policy.save_pretrained(save)
    tokenizer.save_pretrained(save)
log = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
print(json.dumps({"seconds": seconds, "whole": whole, "episodes": trainer.state.episode, "log": log}), flush=True)
