"""Adapters: a few new weights beside a model's own, which stay as they are (PEFT).

The model's weights are frozen, and in bfloat16 where products are (autocast over float32 ones would cast all of them at
each call); the adapter's are in float32. What is saved is the adapter alone, with the name of the model it belongs to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tuner.config.arguments import AdapterArguments
from tuner.errors import ModelError, one_line

# PEFT's class of each `--peft_type`, and of our flags the fields that it has under the same meaning.
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "lora": (
        "LoraConfig",
        {
            **{"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"},
            **{"target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"},
            **{"use_rslora": "use_rslora", "use_dora": "use_dora", "init_lora_weights": "init_lora_weights"},
        },
    ),
    "ia3": ("IA3Config", {"target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"}),
    "prompt_tuning": ("PromptTuningConfig", {"num_virtual_tokens": "num_virtual_tokens"}),
    "prefix_tuning": ("PrefixTuningConfig", {"num_virtual_tokens": "num_virtual_tokens"}),
}


def add_adapter(
    model: PreTrainedModel, args: AdapterArguments, tokenizer: PreTrainedTokenizerBase, half: bool
) -> PeftModel:
    """A model with a new adapter, drawn from torch's generator; its own weights are frozen, in bfloat16 if `half`.

    Raises:
        ModelError: PEFT does not know where to put it, or cannot in this model.
    """
    name, fields = KINDS[args.peft_type]
    given: dict[str, Any] = {field: getattr(args, flag) for field, flag in fields.items()}
    options = {field: value for field, value in given.items() if value not in (None, [])}
    if options.get("target_modules") == ["all-linear"]:
        options["target_modules"] = "all-linear"
    if args.peft_type == "lora" and args.init_lora_weights == "default":
        del options["init_lora_weights"]
    if args.peft_type == "lora" and args.eos_token:  # what ends an answer is to be learnt, also if it is new
        options["trainable_token_indices"] = [tokenizer.eos_token_id]
    if half:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    set_seed(args.seed)
    try:
        adapted = get_peft_model(model, getattr(peft, name)(task_type="CAUSAL_LM", **options))
    except (ValueError, TypeError, AttributeError, NotImplementedError, ImportError) as error:
        raise ModelError(f"--peft_type {args.peft_type}: {one_line(error)}") from error
    # Where to find it again: a built-in is no path.
    adapted.peft_config["default"].base_model_name_or_path = args.model_name_or_path
    return adapted


def adapter_base(folder: str) -> str | None:
    """The model that the adapter in a folder belongs to; None where there is no adapter."""
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])


def with_adapter(model: PreTrainedModel, folder: str) -> PeftModel:
    """A model with the adapter that a folder holds; a `ModelError` where they do not fit."""
    try:
        return PeftModel.from_pretrained(model, folder)
    except (ValueError, RuntimeError, KeyError, OSError, TypeError) as error:
        raise ModelError(f"The adapter in {folder} does not fit: {one_line(error)}") from error
