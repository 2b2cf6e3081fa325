"""A fine-tuning toolkit for the Hugging Face ecosystem.

`import tuner` loads nothing heavy: a name below is imported when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "RecipeArguments": "tuner.config.arguments",
    "flag": "tuner.config.arguments",
    "parse_arguments": "tuner.config.arguments",
    "run": "tuner.errors",
    "open_run": "tuner.train.run",
    "load_rows": "tuner.train.prepare",
    "load_tokenizer": "tuner.train.prepare",
    "encode_rows": "tuner.train.prepare",
    "load_model": "tuner.train.prepare",
    "show_plan": "tuner.train.plan",
    "load_documents": "tuner.train.pretraining",
    "load_pretraining_tokenizer": "tuner.train.pretraining",
    "load_objective": "tuner.train.pretraining",
    "make_examples": "tuner.train.pretraining",
    "load_pretraining_model": "tuner.loading.objective_model",
    "show_pretraining_plan": "tuner.train.pretraining_plan",
    "SampleCallback": "tuner.evaluation.samples",
    "PretrainTrainer": "tuner.train.pretrainer",
    "write_pretraining_report": "tuner.evaluation.pretraining",
    "SFTTrainer": "tuner.train.trainer",
    "write_report": "tuner.evaluation.report",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
