"""Adapters: a few new weights beside a model's own, which stay as they are (PEFT).

The model's weights are frozen, and in bfloat16 where products are (autocast over float32 ones would cast all of them at
each call); the adapter's are in float32. What is saved is the adapter alone, with the name of the model it belongs to.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tuner.config.adapters import KINDS, AdapterArguments
from tuner.errors import ModelError, one_line
from tuner.loading.checkpoints import adapter_base, difference, load_pretrained, set_ends, with_adapter

# PEFT's `task_type` by the end of a class's name.
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def add_adapter(
    model: PreTrainedModel, args: AdapterArguments, tokenizer: PreTrainedTokenizerBase, half: bool
) -> peft.PeftModel:
    """A model with a new adapter, drawn from torch's generator; its own weights are frozen, in bfloat16 if `half`.

    Raises:
        ModelError: PEFT does not know where to put it, or cannot in this model.
    """
    name, fields = KINDS[args.peft_type]
    given: dict[str, Any] = {field: getattr(args, flag) for field, flag in fields.items()}
    options = {field: value for field, value in given.items() if value not in (None, [])}
    if options.get("target_modules") == ["all-linear"]:
        options["target_modules"] = "all-linear" if args.peft_type == "lora" else None  # then PEFT's own, by the family
    if options.get("init_lora_weights") == "default":
        del options["init_lora_weights"]
    if args.peft_type == "lora" and args.eos_token:  # what ends an answer is to be learnt, also if it is new
        options["trainable_token_indices"] = [tokenizer.eos_token_id]
    if half:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    set_seed(args.seed)
    # PEFT asks transformers under an old name, and looks for a folder where a built-in is named.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
    try:
        adapted = peft.get_peft_model(model, getattr(peft, name)(task_type=task_of(model), **options))
    except (ValueError, TypeError, AttributeError, NotImplementedError, ImportError) as error:
        raise ModelError(f"--peft_type {args.peft_type}: {one_line(error)}") from error
    # Where to find it again: a built-in is no path.
    adapted.peft_config["default"].base_model_name_or_path = args.model_name_or_path
    adapted.peft_config["default"].revision = args.model_revision
    return adapted


def task_of(model: PreTrainedModel) -> str:
    """PEFT's name of what a model is for, by its class: a head is trained and saved beside the adapter."""
    return next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), "CAUSAL_LM")


def save_merged(folder: Path, trust_remote_code: bool = False) -> float:
    """Write the model with a folder's adapter merged into its weights, in float32, to `merged` in the folder.

    Returns:
        The greatest difference of its logits on random tokens, as a share of the greatest logit.
    """
    options = {"trust_remote_code": trust_remote_code}
    name, revision = adapter_base(str(folder)) or ("", "")
    base = load_pretrained(AutoModelForCausalLM, name, torch.float32, revision=revision, **options)
    merged = load_pretrained(AutoModelForCausalLM, str(folder), torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_ends(merged, tokenizer)
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return difference(with_adapter(base, str(folder)), merged)
