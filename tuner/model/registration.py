"""Makes the family known where other libraries look a model up: by configuration, by class name, by model type.

It travels with a saved model, so that a tool finds the same where this package is not installed.
"""

from __future__ import annotations

import sys
from typing import Any

import transformers

PEFT_TABLES = "peft.utils.constants"


def register(config: Any, **classes: Any) -> None:
    """The shape's models with the Auto classes of these names, and in the tables of class names behind those.

    The tables of names (`MODEL_FOR_CAUSAL_LM_MAPPING_NAMES` and its like) have no public way in. transformers' Trainer
    shifts labels for label smoothing by them, and lm-eval tells decoders from encoder-decoders.
    """
    for name, model in classes.items():
        auto = getattr(transformers, name)
        auto.register(config, model, exist_ok=True)
        auto._model_mapping._model_mapping[config.model_type] = model.__name__
        model.register_for_auto_class(name)
    config.auto_classes = {
        name: f"{model.__module__.rpartition('.')[2]}.{model.__name__}" for name, model in classes.items()
    }


def register_with_peft(model_type: str) -> None:
    """An adapter without `target_modules` gets Llama's: our layers have the same names.

    PEFT may be imported after this package, or never, so that its tables are written when it asks for a configuration.
    """
    for name, table in vars(sys.modules.get(PEFT_TABLES, object)).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING") and "llama" in table:
            table.setdefault(model_type, table["llama"])
