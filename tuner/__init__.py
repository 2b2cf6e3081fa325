"""A fine-tuning toolkit for the Hugging Face ecosystem.

`import tuner` loads nothing heavy: a name below is imported when it is first used.
"""
# ruff: noqa: F401

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Python looks for modules in a script's own folder first, where `recipes/evaluate.py` would be found for the library
# `evaluate`: that folder goes last.
if Path(sys.path[0]).name == "recipes" and Path(sys.path[0], "evaluate.py").is_file():
    sys.path.append(sys.path.pop(0))

if TYPE_CHECKING:  # so that an editor finds what a recipe calls
    from tuner.config.adapters import AdapterArguments
    from tuner.config.arguments import RecipeArguments, flag, parse_arguments
    from tuner.config.evaluation import EvaluationArguments
    from tuner.config.ppo import PPOArguments
    from tuner.errors import run
    from tuner.evaluation.ensemble import members, write_ensemble
    from tuner.evaluation.eval_report import check_gates, write_evaluation
    from tuner.evaluation.plan import plan_evaluation
    from tuner.evaluation.report import write_report
    from tuner.evaluation.run import evaluate
    from tuner.evaluation.samples import SampleCallback
    from tuner.objectives.arguments import (
        ClassifyArguments,
        ContrastiveArguments,
        DenoiseArguments,
        MaskedLMArguments,
        PreferenceArguments,
        RewardArguments,
        Seq2SeqArguments,
        TextArguments,
    )
    from tuner.objectives.causal_lm import SFT
    from tuner.objectives.classification import Classification
    from tuner.objectives.dpo import DPO
    from tuner.objectives.registry import PRETRAINING
    from tuner.objectives.reward import Reward
    from tuner.objectives.seq2seq import Seq2Seq
    from tuner.rl.ppo import PPOTrainer
    from tuner.rl.report import write_ppo_report
    from tuner.rl.run import PPO, load_prompts, load_scorers, show_prompts_plan
    from tuner.train.fewshot import tune_encoder
    from tuner.train.plan import show_plan
    from tuner.train.prepare import (
        load_documents,
        load_labelled_rows,
        load_model,
        load_rows,
        load_tokenizer,
        make_examples,
        make_objective,
    )
    from tuner.train.run import open_run
    from tuner.train.trainer import Trainer

# The same, by module.
_NAMES = {
    "config.adapters": "AdapterArguments",
    "config.arguments": "RecipeArguments flag parse_arguments",
    "config.evaluation": "EvaluationArguments",
    "config.ppo": "PPOArguments",
    "errors": "run",
    "evaluation.ensemble": "members write_ensemble",
    "evaluation.eval_report": "check_gates write_evaluation",
    "evaluation.plan": "plan_evaluation",
    "evaluation.report": "write_report",
    "evaluation.run": "evaluate",
    "evaluation.samples": "SampleCallback",
    "objectives.arguments": (
        "ClassifyArguments ContrastiveArguments DenoiseArguments MaskedLMArguments PreferenceArguments "
        "RewardArguments Seq2SeqArguments TextArguments"
    ),
    "objectives.causal_lm": "SFT",
    "objectives.classification": "Classification",
    "objectives.dpo": "DPO",
    "objectives.registry": "PRETRAINING",
    "objectives.reward": "Reward",
    "objectives.seq2seq": "Seq2Seq",
    "rl.ppo": "PPOTrainer",
    "rl.report": "write_ppo_report",
    "rl.run": "PPO load_prompts load_scorers show_prompts_plan",
    "train.fewshot": "tune_encoder",
    "train.plan": "show_plan",
    "train.prepare": (
        "load_documents load_labelled_rows load_model load_rows load_tokenizer make_examples make_objective"
    ),
    "train.run": "open_run",
    "train.trainer": "Trainer",
}
_HOME = {name: f"tuner.{module}" for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
