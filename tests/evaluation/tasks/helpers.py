"""Tiny models and files for the tasks of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tests.model.helpers import scramble, tiny_decoder
from tests.text import samples
from tuner.config.arguments import parse_arguments
from tuner.config.evaluation import EvaluationArguments
from tuner.evaluation.eval_report import check_gates, write_evaluation
from tuner.evaluation.plan import plan_evaluation
from tuner.evaluation.run import Outcome, evaluate
from tuner.model import TunerEncoderConfig


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_decoder(folder: Path, seed: int = 0, **shape: Any) -> Path:
    """A decoder of 50 k parameters with a tokenizer of 1,000 tokens and a chat template."""
    tokenizer = samples.small()
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, **shape}
    tiny_decoder(seed=seed, **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_with_head(folder: Path, kind: type[Any], names: list[str], seed: int = 0, **fields: Any) -> Path:
    """A tiny encoder with a head of this class over these labels, and the same tokenizer."""
    tokenizer = samples.small()
    torch.manual_seed(seed)
    config = TunerEncoderConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)}, **fields,
    )  # fmt: skip
    scramble(kind(config), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*flags: Any) -> list[Outcome]:
    """What `recipes/evaluate.py` does with these flags."""
    plan = plan_evaluation(parse_arguments(EvaluationArguments, [str(flag) for flag in flags]))
    outcomes = evaluate(plan)
    write_evaluation(plan, outcomes)
    check_gates(plan, outcomes)
    return outcomes


def samples_of(folder: Path, task: str) -> list[dict[str, Any]]:
    """The samples that an evaluation wrote."""
    lines = (folder / "eval" / f"{task}.samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def json_of(folder: Path, task: str) -> dict[str, Any]:
    """The figures that an evaluation wrote."""
    return json.loads((folder / "eval" / f"{task}.json").read_text(encoding="utf-8"))
