"""Adapters: a few new weights beside a model's own, which stay as they are (PEFT).

The model's weights are frozen, and in bfloat16 where products are (autocast over float32 ones would cast all of them at
each call), or in 4 bits (QLoRA); the adapter's are in float32. What is saved is the adapter alone, with the name of the
model it belongs to, which has all its bits: that is what `save_merged` merges with.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tuner.config.adapters import KINDS, AdapterArguments
from tuner.data.collate import IGNORED
from tuner.errors import ModelError, one_line
from tuner.loading.checkpoints import adapter_base, difference, load_pretrained, set_ends, with_adapter
from tuner.loading.classifiers import HEADS, auto_suffix
from tuner.ops.lora import use_fast_lora

# PEFT's `task_type` by the end of a class's name.
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
# What loads a model with a head, by PEFT's `task_type`.
AUTO = {TASKS[auto_suffix(auto)]: auto for auto, _ in HEADS.values()}
# What EVA's batches give a model; so many are taken, again and again, until it has settled, or was not after so many.
INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
EVA_BATCHES, EVA_PASSES = 64, 512
# Numbers that share a constant in 4 bits: bitsandbytes' default.
BLOCK = 64


def add_adapter(
    model: PreTrainedModel, args: AdapterArguments, tokenizer: PreTrainedTokenizerBase, half: bool
) -> peft.PeftModel:
    """A model with a new adapter, drawn from torch's generator; its own weights are frozen, in bfloat16 if `half`.

    Raises:
        ModelError: PEFT does not know where to put it, or cannot in this model.
    """
    if model.config.model_type == "reformer":
        raise ModelError(
            "Reformer's reversible layers have gradients where their input has: no adapter can be trained."
        )
    name, fields = KINDS[args.peft_type]
    given: dict[str, Any] = {field: getattr(args, flag) for field, flag in fields.items()}
    options = {field: value for field, value in given.items() if value not in (None, [])}
    if options.get("target_modules") == ["all-linear"]:
        options["target_modules"] = "all-linear" if args.peft_type == "lora" else None  # then PEFT's own, by the family
    if options.get("init_lora_weights") == "default":
        del options["init_lora_weights"]
    if options.get("init_lora_weights") == "eva":
        options["eva_config"] = peft.EvaConfig()
    everywhere = options.get("target_modules") == "all-linear"
    if options.pop("layers_to_transform", "all") == "upper":
        options |= _upper(model, options["target_modules"])
    if args.peft_type == "lora" and args.eos_token:  # what ends an answer is to be learnt, also if it is new
        options["trainable_token_indices"] = [tokenizer.eos_token_id]
    if args.load_in_4bit:
        quantise(
            model, [*args.lora_modules_to_save, *_no_plain_layers(model)], torch.bfloat16 if half else torch.float32
        )
    if half:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    task = task_of(model)
    if everywhere:
        # The heads of these tasks PEFT trains whole, and still counts among the layers that get an adapter.
        heads = ["classifier", "score", "qa_outputs"] if task in ("TOKEN_CLS", "QUESTION_ANS") else []
        options["exclude_modules"] = [*heads, *_no_plain_layers(model)]
    set_seed(args.seed)
    # PEFT asks transformers under an old name, and looks for a folder where a built-in is named.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
    warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)  # a prompt goes before them
    warnings.filterwarnings("ignore", "lora with eva initialization", UserWarning)  # to save memory of an adapter
    try:
        adapted = peft.get_peft_model(model, getattr(peft, name)(task_type=task, **options))
    except (ValueError, TypeError, AttributeError, NotImplementedError, ImportError) as error:
        raise ModelError(f"--peft_type {args.peft_type}: {one_line(error)}") from error
    if args.fast_ops:
        use_fast_lora(adapted)
    # Where to find it again: a built-in is no path.
    adapted.peft_config["default"].base_model_name_or_path = args.model_name_or_path
    adapted.peft_config["default"].revision = args.model_revision
    return adapted


def task_of(model: PreTrainedModel) -> str:
    """PEFT's name of what a model is for, by its class: a head is trained and saved beside the adapter."""
    return next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), "CAUSAL_LM")


def _upper(model: PreTrainedModel, targets: Any) -> dict[str, Any]:
    """PEFT's options for an adapter in the upper half of the layers: it takes no "all-linear" with them."""
    if targets == "all-linear":
        head, body = model.get_output_embeddings(), model.base_model.named_modules()  # other heads are not in it
        linear = (name for name, module in body if isinstance(module, nn.Linear) and module is not head)
        targets = sorted({name.rpartition(".")[2] for name in linear})
    count = model.config.get_text_config().num_hidden_layers
    return {"target_modules": targets, "layers_to_transform": list(range(count // 2, count))}


def _no_plain_layers(model: PreTrainedModel) -> list[str]:
    """Ends of the names of linear layers that are used otherwise: to compute something else (DeepSeek V4's groups), or
    not called, their weight going into a kernel, so that an adapter there would learn nothing and 4 bits be taken for
    numbers: Mamba's, in whose mixers all do but the first, `in_proj`."""
    found = set()
    for name, module in model.named_modules():
        mixer = isinstance(getattr(module, "D", None), nn.Parameter)
        for part, layer in module.named_children():
            if isinstance(layer, nn.Linear) and (not _is_plain(layer) or (mixer and part != "in_proj")):
                found.add(f"{name.rpartition('.')[2]}.{part}")
    return sorted(found)


def _is_plain(layer: nn.Linear) -> bool:
    """Whether it computes what a linear layer does. Falcon's does by a forward pass of its own."""
    if type(layer).forward is nn.Linear.forward or type(layer).__module__.startswith("bitsandbytes"):
        return True
    try:
        inputs = torch.linspace(-1, 1, layer.in_features).to(layer.weight)[None]
        with torch.no_grad():
            found, plain = layer(inputs).float(), nn.Linear.forward(layer, inputs).float()
        return found.shape == plain.shape and bool((found - plain).norm() <= 0.01 * plain.norm())
    except Exception:  # whatever a family's own code raises
        return False


def quantise(model: PreTrainedModel, whole: list[str], dtype: torch.dtype) -> None:
    """Put the weights of linear layers into 4 bits, NF4 with quantised constants (Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314, section 3), of all but heads, what `whole` names, and layers with fewer inputs
    than a block. Done here and not while loading, so that any model can be: ours, of a GGUF file, with an adapter
    merged into it.

    Args:
        dtype: of the products.

    Raises:
        ModelError: bitsandbytes is not installed, or the model has no linear layer (GPT-2 has its own kind).
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("--load_in_4bit true needs a package: pip install bitsandbytes.")
    import bitsandbytes  # seconds, and not everyone has it

    how: Any = {"quant_type": "nf4", "compress_statistics": True}
    body = model.base_model  # heads are not in it
    found = [(n, m) for n, m in body.named_modules() if type(m) is nn.Linear and not n.endswith(tuple(whole))]
    # On CPUs with AVX-512 bitsandbytes 0.50 unpacks a row that is shorter than a block with another row's constant.
    found = [(name, linear) for name, linear in found if linear.in_features >= BLOCK]
    if not found:
        raise ModelError(f"--load_in_4bit: {type(model).__name__} has no torch.nn.Linear that could be quantised.")
    for name, linear in found:
        packed = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, dtype, device="meta", **how
        )
        data, packed.bias = linear.weight.data, linear.bias
        weight: Any = bitsandbytes.nn.Params4bit(data, requires_grad=False, module=packed, **how)
        packed.weight = weight.to(data.device)  # here it is quantised
        # On CPUs with bfloat16 an evaluation would repack the weights into a form that has no gradient.
        packed.support_avx512bf16_for_cpu = False
        body.set_submodule(name, packed)
    model.is_loaded_in_4bit = True  # PEFT asks


def start_from_data(model: peft.PeftModel, batches: Iterator[dict[str, torch.Tensor]], checkpoint: Path | None) -> None:
    """EVA: begin with the directions in which what a layer is given varies most, and give each layer as many of them as
    it needs (Paischer et al. 2024, https://arxiv.org/abs/2410.07170), by PEFT. A run that is continued takes the shapes
    from its `checkpoint`, whose weights come after them.

    Args:
        batches: of the model's inputs and `labels`, the same in every process; the first are taken.

    Raises:
        ModelError: the start does not settle, or PEFT cannot make it of these.
    """
    saved = None
    if checkpoint is not None:
        weights = load_file(checkpoint / "adapter_model.safetensors")
        lora = (name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer))
        saved = {name: weights.get(f"{name}.lora_A.weight", torch.empty(0, 0)) for name in lora}
    base: Any = model.get_base_model()
    body, calls = base.base_model, itertools.count(1)
    config = model.peft_config["default"]

    def forward(_: Any, batch: dict[str, torch.Tensor]) -> None:
        if next(calls) > EVA_PASSES:
            raise ValueError(f"it has not settled after {EVA_PASSES} batches")
        body(**{name: value for name, value in batch.items() if name in INPUTS})

    least, taken = round(config.r * config.eva_config.rho), list(itertools.islice(batches, EVA_BATCHES))
    # Of a causal model those tokens count that are learnt; else there is a label for each sequence.
    config.eva_config.use_label_mask = all(b["labels"].shape == b["input_ids"].shape for b in taken)
    key = "labels" if config.eva_config.use_label_mask else "input_ids"
    enough = [batch for batch in taken if (batch[key] != IGNORED).sum() >= least]
    try:
        if model.config.is_encoder_decoder:
            raise ValueError("the two stacks of an encoder-decoder are given different tokens")
        if not enough and saved is None:
            raise ValueError(f"no batch has the {least} tokens that --lora_r {config.r} takes")
        peft.initialize_lora_eva_weights(
            model, enough, saved, forward, gather_distributed_inputs=False, show_progress_bar=False
        )
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"--init_lora_weights eva: {one_line(error).rstrip('.')}.") from error
    for parameter in model.parameters():
        if parameter.requires_grad:  # new ones are made in the type of the weights they are for
            parameter.data = parameter.data.float()


def save_merged(folder: Path, trust_remote_code: bool = False, config: PreTrainedConfig | None = None) -> float:
    """Write the model with a folder's adapter merged into its weights, in float32, to `merged` in the folder.

    Args:
        config: of the trained model: only that knows the classes of a head that was trained beside the adapter.

    Returns:
        The greatest difference of its logits on random tokens, as a share of the greatest logit.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    name, revision = adapter_base(str(folder)) or ("", "")
    task = peft.PeftConfig.from_pretrained(str(folder)).task_type
    kind = {**AUTO, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM}.get(task, AutoModelForCausalLM)
    if task in AUTO:
        options |= {"config": config, "new": [], "ignore_mismatched_sizes": True}
    base = load_pretrained(kind, name, torch.float32, revision=revision, **options)
    merged = load_pretrained(kind, str(folder), torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind is AutoModelForCausalLM:
        set_ends(merged, tokenizer)
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return difference(with_adapter(base, str(folder)), merged)
