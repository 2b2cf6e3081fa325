"""transformers' `Trainer` on texts with a class, as its text-classification example goes about it. Runs in an
environment of its own.

`trainer_classify.py FOLDER MODEL OUTPUT TARGET SETTINGS_JSON`: FOLDER holds `train.jsonl` and `test.jsonl`; SETTINGS
are fields of `TrainingArguments` and `max_length`. It is evaluated four times an epoch and stops once its accuracy
reaches TARGET. Prints its accuracies, and the seconds that evaluation took.
"""

import json
import sys
import time

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

folder, name, output, target, settings = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5]
settings = json.loads(settings)
length = settings.pop("max_length")
set_seed(settings.get("seed", 42))
tokenizer = AutoTokenizer.from_pretrained(name)
rows = load_dataset("json", data_dir=folder, cache_dir=f"{output}/cache")
names = sorted(set(rows["train"]["label"]))
model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(names))


def encode(batch):
    found = tokenizer(batch["text"], truncation=True, max_length=length)
    return {**found, "labels": [names.index(label) for label in batch["label"]]}


encoded = rows.map(encode, batched=True, remove_columns=rows["train"].column_names)
spent: list[float] = []


class Timed(Trainer):
    def evaluate(self, *args, **kwargs):
        start = time.perf_counter()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - start)


class StopAtTarget(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics=None, **_):
        if metrics["eval_accuracy"] >= target:
            control.should_training_stop = True


batch = settings.get("per_device_train_batch_size", 8)
trainer = Timed(
    model=model,
    args=TrainingArguments(
        output_dir=output, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", eval_strategy="steps",
        eval_steps=max(len(encoded["train"]) // batch // 4, 1), per_device_eval_batch_size=32, **settings,
    ),
    train_dataset=encoded["train"],
    eval_dataset=encoded["test"],
    processing_class=tokenizer,
    compute_metrics=lambda found: {"accuracy": float((np.argmax(found[0], axis=1) == found[1]).mean())},
    callbacks=[StopAtTarget()],
)  # fmt: skip
trainer.train()
accuracies = {e["epoch"]: e["eval_accuracy"] for e in trainer.state.log_history if "eval_accuracy" in e}
print(json.dumps({"accuracy": accuracies, "evaluating": sum(spent)}), flush=True)
