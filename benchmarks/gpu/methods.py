"""Every method besides pretraining and fine-tuning on the card: adapters, preferences, rewards, PPO, heads, seq2seq."""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
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
# What a run reads stands in capitals: MODEL is that of `prepare`, others are folders of the runs before it in its line.
LINES = [
    [
        ("REWARD", f"reward --model_name_or_path MODEL {PAIRS}"),
        ("PPO", f"ppo --model_name_or_path MODEL {TALK} --reward_model_path REWARD"),
    ],
    [
        ("GRPO", f"ppo --model_name_or_path MODEL {SUMS} --advantage grpo"),
        ("PPO-LORA", f"ppo --model_name_or_path MODEL {SUMS} --use_peft true --lora_layers upper"),
    ],
    [
        ("LORA", f"lora --model_name_or_path MODEL {CUT}"),
        ("DORA", f"lora --model_name_or_path MODEL {CUT} --use_dora true --dtype bfloat16"),
        ("DPO", f"dpo --model_name_or_path MODEL {PAIRS}"),
        ("KTO", f"dpo --model_name_or_path MODEL {PAIRS} --loss_type kto --use_peft true"),
    ],
    [
        ("ENCODER", f"pretrain --objective mlm --train_tokenizer wordpiece {NEW} --dataset_name CHATS {SHORT}"),
        ("CLASSES", f"classify --model_name_or_path ENCODER --dataset_name QUESTIONS {SHORT} --strategy full"),
        ("HEAD", f"classify --model_name_or_path ENCODER --dataset_name QUESTIONS {SHORT} --strategy head"),
        ("SEQ2SEQ", f"seq2seq {NEW} --dataset_name builtin:chitchat-punctuation {SHORT} --max_predict_samples 8"),
    ],
]


# It takes what memory is free for its cache, so that it runs alone.
CONTINUOUS = [("PPO-CONTINUOUS", f"ppo --model_name_or_path MODEL {SUMS} --rollout continuous")]


def methods(setting: Setting) -> Finding:
    """Each recipe runs to its end, and nothing that it logs is infinite."""
    return _run(setting, LINES)


def continuous(setting: Setting) -> Finding:
    """PPO's completions by transformers' continuous batching."""
    return _run(setting, [CONTINUOUS])


def _run(setting: Setting, lines: list[list[tuple[str, str]]]) -> Finding:
    rows = [json.loads(line) for line in (setting.work / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [turn["content"] for row in rows for turn in row["messages"]]
    labelled = [{"text": text, "label": "question" if text.endswith("?") else "none"} for text in texts]
    file = setting.work / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    known = {"MODEL": setting.work / "model", "CHATS": setting.work / "chats.jsonl", "QUESTIONS": file}

    def line(runs: list[tuple[str, str]]) -> list[str]:
        found, folders = list[str](), dict[str, Any](known)
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
            except (RuntimeError, AssertionError) as error:
                found.append(f"{name.lower()} FAILED: {error}")
        return found

    with ThreadPoolExecutor(1 if setting.small else len(lines)) as pool:
        said = [text for found in pool.map(line, lines) for text in found]
    assert not any("FAILED" in text for text in said), "; ".join(said)
    return Finding("; ".join(said))
