"""Tiny models and files for the tasks of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.model.helpers import tiny_decoder
from tests.text import samples
from tuner.config.arguments import parse_arguments
from tuner.config.evaluation import EvaluationArguments
from tuner.evaluation.eval_report import check_gates, write_evaluation
from tuner.evaluation.plan import plan_evaluation
from tuner.evaluation.run import Outcome, evaluate


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
