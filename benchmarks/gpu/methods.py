"""Every method besides pretraining and fine-tuning on the card: adapters, preferences, rewards, PPO, heads, seq2seq."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

from benchmarks.gpu.setting import ROOT, Finding, Setting, python

BRIEF = "--max_steps 6 --logging_steps 1 --test_split_size 8 --per_device_train_batch_size 4"
SHORT = f"{BRIEF} --max_length 128"
PAIRS = f"--dataset_name builtin:chitchat-pairs {BRIEF} --max_length 256"
PPO = f"{BRIEF} --gradient_accumulation_steps 2 --response_length 16 --eval_steps 3"
TALK = f"--dataset_name builtin:chitchat-small {PPO}"
SUMS = f"--dataset_name builtin:sums --reward_funcs tuner.rl.verify.exact_answer {PPO}"
CUT = f"--dataset_name CHATS {SHORT} --max_labels_lost 1"
NEW = "--preset tiny --vocab_size 1024"
# What a run reads stands in capitals: MODEL is that of `prepare`, others are folders of the runs before it in its list.
Runs = list[tuple[str, str]]
REWARDS: Runs = [
    ("REWARD", f"reward --model_name_or_path MODEL {PAIRS}"),
    ("PPO", f"ppo --model_name_or_path MODEL {TALK} --reward_model_path REWARD"),
]
GROUPS: Runs = [
    ("GRPO", f"ppo --model_name_or_path MODEL {SUMS} --advantage grpo"),
    ("PPO-LORA", f"ppo --model_name_or_path MODEL {SUMS} --use_peft true --lora_layers upper"),
]
ADAPTERS: Runs = [
    ("LORA", f"lora --model_name_or_path MODEL {CUT}"),
    ("DORA", f"lora --model_name_or_path MODEL {CUT} --use_dora true --dtype bfloat16"),
    ("DPO", f"dpo --model_name_or_path MODEL {PAIRS}"),
    ("KTO", f"dpo --model_name_or_path MODEL {PAIRS} --loss_type kto --use_peft true"),
]
HEADS: Runs = [
    ("ENCODER", f"pretrain --objective mlm --train_tokenizer wordpiece {NEW} --dataset_name CHATS {SHORT}"),
    ("CLASSES", f"classify --model_name_or_path ENCODER --dataset_name QUESTIONS {SHORT} --strategy full"),
    ("HEAD", f"classify --model_name_or_path ENCODER --dataset_name QUESTIONS {SHORT} --strategy head"),
    ("SEQ2SEQ", f"seq2seq {NEW} --dataset_name builtin:chitchat-punctuation {SHORT} --max_predict_samples 8"),
]
# It takes what memory is free for its cache, so that it runs alone.
CONTINUOUS: Runs = [("PPO-CONTINUOUS", f"ppo --model_name_or_path MODEL {SUMS} --rollout continuous")]


def rewards(setting: Setting) -> Finding:
    """A reward model, and PPO with a critic by it."""
    return _run(setting, REWARDS)


def groups(setting: Setting) -> Finding:
    """PPO by groups of completions, and of an adapter."""
    return _run(setting, GROUPS)


def adapters(setting: Setting) -> Finding:
    """LoRA and preferences."""
    return _run(setting, ADAPTERS)


def heads(setting: Setting) -> Finding:
    """An encoder, its heads, and an encoder-decoder."""
    return _run(setting, HEADS)


def continuous(setting: Setting) -> Finding:
    """PPO's completions by transformers' continuous batching."""
    return _run(setting, CONTINUOUS)


def _run(setting: Setting, runs: Runs) -> Finding:
    """One after the other to their ends, and nothing that they log is infinite."""
    rows = [json.loads(line) for line in (setting.work / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [turn["content"] for row in rows for turn in row["messages"]]
    labelled = [{"text": text, "label": "question" if text.endswith("?") else "none"} for text in texts]
    file = setting.work / f"questions-{runs[0][0]}.jsonl"  # four write at once
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    known = {"MODEL": setting.work / "model", "CHATS": setting.work / "chats.jsonl", "QUESTIONS": file}
    found, folders, failed = list[str](), dict[str, Any](known), False
    for name, flags in runs:
        folders[name] = setting.work / f"method-{name}"
        shutil.rmtree(folders[name], ignore_errors=True)
        recipe, *words = [str(folders.get(word, word)) for word in flags.split()]
        try:
            python(ROOT / "recipes" / f"{recipe}.py", *words, "--output_dir", folders[name])
            logged = json.loads((folders[name] / "metrics.json").read_text(encoding="utf-8"))["log"]
            numbers = [value for entry in logged for value in entry.values() if isinstance(value, float)]
            assert numbers and all(map(math.isfinite, numbers)), f"it logged {logged}"
            found.append(f"{name.lower()} runs")
        except Exception as error:  # the others' results count too
            found.append(f"{name.lower()} FAILED: {error}")
            failed = True
    assert not failed, "; ".join(found)
    return Finding("; ".join(found))
