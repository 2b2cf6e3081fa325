"""A fine-tuning toolkit for the Hugging Face ecosystem.

`import tuner` loads nothing heavy: a name below is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # so that an editor finds what a recipe calls
    from tuner.config.arguments import RecipeArguments, flag, parse_arguments
    from tuner.errors import run
    from tuner.evaluation.report import write_report
    from tuner.evaluation.samples import SampleCallback
    from tuner.objectives.arguments import (
        ContrastiveArguments,
        DenoiseArguments,
        MaskedLMArguments,
        PreferenceArguments,
        TextArguments,
    )
    from tuner.objectives.causal_lm import SFT
    from tuner.objectives.dpo import DPO
    from tuner.objectives.registry import PRETRAINING
    from tuner.train.plan import show_plan
    from tuner.train.prepare import (
        load_documents,
        load_model,
        load_rows,
        load_tokenizer,
        make_examples,
        make_objective,
    )
    from tuner.train.run import open_run
    from tuner.train.trainer import Trainer

_HOME = {
    "RecipeArguments": "tuner.config.arguments",
    "flag": "tuner.config.arguments",
    "parse_arguments": "tuner.config.arguments",
    "run": "tuner.errors",
    "write_report": "tuner.evaluation.report",
    "SampleCallback": "tuner.evaluation.samples",
    "ContrastiveArguments": "tuner.objectives.arguments",
    "DenoiseArguments": "tuner.objectives.arguments",
    "MaskedLMArguments": "tuner.objectives.arguments",
    "PreferenceArguments": "tuner.objectives.arguments",
    "TextArguments": "tuner.objectives.arguments",
    "SFT": "tuner.objectives.causal_lm",
    "DPO": "tuner.objectives.dpo",
    "PRETRAINING": "tuner.objectives.registry",
    "show_plan": "tuner.train.plan",
    "load_documents": "tuner.train.prepare",
    "load_model": "tuner.train.prepare",
    "load_rows": "tuner.train.prepare",
    "load_tokenizer": "tuner.train.prepare",
    "make_examples": "tuner.train.prepare",
    "make_objective": "tuner.train.prepare",
    "open_run": "tuner.train.run",
    "Trainer": "tuner.train.trainer",
}

__all__ = [
    "DPO",
    "PRETRAINING",
    "SFT",
    "ContrastiveArguments",
    "DenoiseArguments",
    "MaskedLMArguments",
    "PreferenceArguments",
    "RecipeArguments",
    "SampleCallback",
    "TextArguments",
    "Trainer",
    "__version__",
    "flag",
    "load_documents",
    "load_model",
    "load_rows",
    "load_tokenizer",
    "make_examples",
    "make_objective",
    "open_run",
    "parse_arguments",
    "run",
    "show_plan",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
