"""A fine-tuning toolkit for the Hugging Face ecosystem.

`import tuner` loads nothing heavy: a name below is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # so that an editor finds what a recipe calls
    from tuner.config.arguments import RecipeArguments as RecipeArguments
    from tuner.config.arguments import flag as flag
    from tuner.config.arguments import parse_arguments as parse_arguments
    from tuner.errors import run as run
    from tuner.evaluation.report import write_report as write_report
    from tuner.evaluation.samples import SampleCallback as SampleCallback
    from tuner.objectives.arguments import ContrastiveArguments as ContrastiveArguments
    from tuner.objectives.arguments import DenoiseArguments as DenoiseArguments
    from tuner.objectives.arguments import MaskedLMArguments as MaskedLMArguments
    from tuner.objectives.arguments import PreferenceArguments as PreferenceArguments
    from tuner.objectives.arguments import TextArguments as TextArguments
    from tuner.objectives.causal_lm import SFT as SFT
    from tuner.objectives.dpo import DPO as DPO
    from tuner.objectives.registry import PRETRAINING as PRETRAINING
    from tuner.train.plan import show_plan as show_plan
    from tuner.train.prepare import load_documents as load_documents
    from tuner.train.prepare import load_model as load_model
    from tuner.train.prepare import load_rows as load_rows
    from tuner.train.prepare import load_tokenizer as load_tokenizer
    from tuner.train.prepare import make_examples as make_examples
    from tuner.train.prepare import make_objective as make_objective
    from tuner.train.run import open_run as open_run
    from tuner.train.trainer import Trainer as Trainer

# The same, by module.
_NAMES = {
    "config.arguments": "RecipeArguments flag parse_arguments",
    "errors": "run",
    "evaluation.report": "write_report",
    "evaluation.samples": "SampleCallback",
    "objectives.arguments": (
        "ContrastiveArguments DenoiseArguments MaskedLMArguments PreferenceArguments TextArguments"
    ),
    "objectives.causal_lm": "SFT",
    "objectives.dpo": "DPO",
    "objectives.registry": "PRETRAINING",
    "train.plan": "show_plan",
    "train.prepare": "load_documents load_model load_rows load_tokenizer make_examples make_objective",
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
