"""TRL's `SFTTrainer` on rows and a model that the benchmark prepared. Runs in an environment of its own.

`trl_sft.py MODEL ROWS.jsonl STEPS SETTINGS_JSON`: SETTINGS are fields of `SFTConfig`. Prints one JSON line: of each
step the loss, the supervised tokens and the seconds.
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
args = SFTConfig(
    output_dir=tempfile.mkdtemp(),
    max_length=512,
    per_device_train_batch_size=8,
    max_steps=steps,
    assistant_only_loss=True,  # the same tokens are learnt on both sides
    train_sampling_strategy="sequential",  # the same rows in the same order
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    **settings,
)


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next, data loading included."""

    def __init__(self):
        self.steps = []
        self.supervised = 0

    def on_train_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        now = time.perf_counter()
        self.steps.append({"seconds": now - self.start, "supervised": self.supervised})
        self.start, self.supervised = now, 0


class Trainer(SFTTrainer):
    def training_step(self, model, inputs, *rest):
        clock.supervised += int((inputs["labels"][:, 1:] != -100).sum())
        return super().training_step(model, inputs, *rest)


clock = Clock()
trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
    args=args,
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(model_path),
    callbacks=[clock],
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
for step, loss in zip(clock.steps, losses, strict=True):
    step["loss"] = loss
print(json.dumps({"steps": clock.steps, "trl": trl.__version__, "threads": torch.get_num_threads()}), flush=True)
