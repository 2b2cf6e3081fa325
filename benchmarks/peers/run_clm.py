"""transformers' `Trainer` and `LlamaForCausalLM` on raw text, as its causal-LM example goes about it. Runs in an
environment of its own.

`run_clm.py FOLDER OUTPUT STEPS SETTINGS_JSON`: FOLDER holds `train.jsonl`, a tokenizer and a model's configuration;
SETTINGS are fields of `TrainingArguments`. The documents are tokenized and joined by `datasets.map`, 1,000 at a time,
and the joined tokens cut into blocks of 1,024, wherever a document ends. Checkpoints stay in OUTPUT.
"""

import json
import sys
from itertools import chain

import torch
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

BLOCK = 1024
folder, output, steps, settings = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
set_seed(42)
tokenizer = AutoTokenizer.from_pretrained(folder)
documents = load_dataset("json", data_files=f"{folder}/train.jsonl", split="train", cache_dir=f"{output}/cache")


def join(batch):
    columns = {name: list(chain.from_iterable(rows)) for name, rows in batch.items()}
    end = len(columns["input_ids"]) // BLOCK * BLOCK
    blocks = {name: [row[i : i + BLOCK] for i in range(0, end, BLOCK)] for name, row in columns.items()}
    return {**blocks, "labels": [list(ids) for ids in blocks["input_ids"]]}


tokens = documents.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
blocks = tokens.map(join, batched=True)
trainer = Trainer(
    model=AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32),
    args=TrainingArguments(
        output_dir=output, max_steps=steps, report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=20,
        save_only_model=True, **settings,
    ),
    train_dataset=blocks,
    processing_class=tokenizer,
    data_collator=default_data_collator,
)  # fmt: skip
trainer.train()
print(json.dumps({"log": trainer.state.log_history}), flush=True)
