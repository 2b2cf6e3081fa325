"""TRL's `SFTTrainer` on rows and a model that the benchmark prepared. On a CPU it runs in an environment of its own.

`trl_sft.py MODEL ROWS.jsonl STEPS SETTINGS_JSON`: SETTINGS are fields of `SFTConfig`, over those below,
`attn_implementation`, and `lora`, fields of PEFT's `LoraConfig`. Prints one JSON line: of each step the supervised
tokens, all tokens and the seconds, and its loss where every step is logged; and the losses that were logged.
"""

import json
import sys
import tempfile
import time

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

model_path, rows_path, steps, settings = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
with open(rows_path, encoding="utf-8") as stream:
    rows = [json.loads(line) for line in stream]
attention, lora = settings.pop("attn_implementation", None), settings.pop("lora", None)
if lora is not None:
    from peft import LoraConfig
fixed = {
    "output_dir": tempfile.mkdtemp(),
    "max_length": 512,
    "per_device_train_batch_size": 8,
    "max_steps": steps,
    "assistant_only_loss": True,  # the same tokens are learnt on both sides
    "train_sampling_strategy": "sequential",  # the same rows in the same order
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": not torch.accelerator.is_available(),
}
args = SFTConfig(**{**fixed, **settings})


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next, data loading included."""

    def __init__(self):
        self.steps = []

    def on_train_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        now = time.perf_counter()
        self.steps.append({"seconds": now - self.start})
        self.start = now


class Counter:
    """A collator that counts what it collates, before the batch goes to an accelerator: to ask there is to wait."""

    def __init__(self, inner):
        self.inner = inner
        self.batches = []

    def __call__(self, features):
        batch = self.inner(features)
        tokens = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
        self.batches.append({"supervised": int((batch["labels"][:, 1:] != -100).sum()), "tokens": int(tokens)})
        return batch


clock = Clock()
how = {} if attention is None else {"attn_implementation": attention}
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, **how),
    args=args,
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(model_path),
    callbacks=[clock],
    peft_config=None if lora is None else LoraConfig(**lora),
)
counter = trainer.data_collator = Counter(trainer.data_collator)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
for step, batch in zip(clock.steps, counter.batches, strict=False):  # one batch a step, and maybe one read ahead
    step.update(batch)
if args.logging_steps == 1:
    for step, loss in zip(clock.steps, losses, strict=True):
        step["loss"] = loss
found = {"steps": clock.steps, "losses": losses, "trl": trl.__version__, "threads": torch.get_num_threads()}
print(json.dumps(found), flush=True)
