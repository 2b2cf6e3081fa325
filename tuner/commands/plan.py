"""`tuner plan`: what a configuration is, before anything is built: parameters, operations, memory.

The model is laid out on the meta device, where tensors have shapes and no memory, so that any size can be asked about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tuner.errors import ArgumentError, ModelError
from tuner.estimate.cost import cost, read_training
from tuner.estimate.sizes import active_weights, parameters_by_component
from tuner.families import FAMILIES
from tuner.loading.checkpoints import resolve
from tuner.model import (
    PRESETS,
    TunerDecoderConfig,
    TunerDecoderForCausalLM,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)

# Finer than that of any model: these are ours.
COMPONENTS = {
    "embedding": ("embed_tokens", "embed_positions", "embed_types", "embed_proj", "position_bias"),
    **{f"attention {kind}": (f"{kind}_proj",) for kind in "qkvo"},
    "attention mixtures": ("linear",),
    "feed-forward": ("mlp", "gate_proj", "up_proj", "down_proj", "experts"),
    "router": ("router",),
    "norm": ("norm",),
    "head": ("lm_head", "prediction", "score", "pooler", "seq_relationship", "qa_outputs"),
}
# Bytes a parameter while training: weights, gradients, AdamW's state.
TRAINING = {"float32": 16, "bf16 mixed precision": 18, "--dtype bfloat16": 8}
INFERENCE = {"float32": 4, "bfloat16": 2, "int8": 1}
HEADS: dict[Any, Any] = {
    TunerDecoderConfig: TunerDecoderForCausalLM,
    TunerEncoderConfig: TunerEncoderForMaskedLM,
    TunerSeq2SeqConfig: TunerSeq2SeqForConditionalGeneration,
}


def plan(source: str, context: int | None, output: Path, processes: int = 1) -> None:
    """Print a configuration's tables, and draw `parameters.png`.

    Args:
        source: a preset, a folder, a `config.json`, a Hub id, a GGUF file, or builtin:<name>; ours or of a family that
            has a counterpart here. Or a recipe's YAML, of which also the cost of the training is shown.
        context: tokens of context to count attention with; `max_position_embeddings` by default.
        output: where to draw the picture.
        processes: that train by that YAML.

    Raises:
        ModelError: nothing there, or no counterpart here.
        ArgumentError: a picture that cannot be written.
    """
    training = read_training(Path(source)) if source.endswith((".yaml", ".yml")) else None
    config = (training.config if training else None) or read_config((training and training.model) or source)
    kind = (training.kind if training else None) or HEADS[type(config)]
    with torch.device("meta"):
        model = kind(config)
    context = context or (training.context if training else parts(config)[-1].max_position_embeddings)
    model.tie_weights()
    sizes = parameters_by_component(model, COMPONENTS)
    console = Console(highlight=False)
    console.print(_table(f"Parameters of {source}", sizes, "{:,}", share=True))
    found = operations(model, context)
    console.print(_table("Operations a token", found, "{:,.0f}"))
    if training:
        title = f"Training by {processes} process{'es' if processes > 1 else ''}"
        console.print(_table(title, cost(training, found["training"], processes), "{}"))
    console.print(_table("Memory", memory(model, context), "{:,.1f} MiB", divisor=2**20))
    per_token = cache_bytes(config)
    if per_token:
        console.print(f"KV cache in bfloat16: {per_token:,} bytes a token.")
    try:
        draw(sizes, source, output)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--output {output} cannot be written: {error}") from error
    console.print(f"Written to {output}")


def read_config(source: str) -> PreTrainedConfig:
    """Our configuration of a source, read as ours or translated.

    Raises:
        ModelError: nothing there, or no counterpart here.
    """
    if source in PRESETS:
        return TunerDecoderConfig.from_preset(source)
    path, how = (source, {}) if source.endswith(".json") else resolve(source)
    try:
        config = AutoConfig.from_pretrained(path, **how)
        if type(config) in HEADS:
            return config
        if config.model_type not in FAMILIES:
            raise ValueError(f"a {config.model_type} model has no counterpart here; there are {', '.join(FAMILIES)}.")
        return FAMILIES[config.model_type].read_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source} cannot be planned: {str(error).splitlines()[0]}") from error


def parts(config: PreTrainedConfig) -> list[Any]:
    """The stacks of a configuration: one, or encoder and decoder."""
    return [config.encoder, config.decoder] if isinstance(config, TunerSeq2SeqConfig) else [config]


def operations(model: PreTrainedModel, context: int) -> dict[str, float]:
    """Floating-point operations a token: two for each weight that it meets, and those of attention over `context`.

    Of experts those that a token is sent to. A causal token sees half the context on average. The backward pass costs
    twice the forward pass (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1).
    """
    weights = active_weights(model)
    attention = 0.0
    for part in parts(model.config):
        causal = part.model_type == TunerDecoderConfig.model_type
        for kind in part.layer_types:
            seen = context if kind == "full_attention" else min(context, part.sliding_window)
            seen = {"linformer": 2 * part.linformer_k, "performer": 2 * part.performer_features}.get(
                part.attention_type, seen / 2 if causal and kind == "full_attention" else seen
            )
            attention += 4 * seen * part.num_attention_heads * part.head_dim
            if getattr(part, "add_cross_attention", False):
                attention += 4 * context * part.num_attention_heads * part.head_dim
    forward = 2 * weights + attention
    return {
        "weights": 2 * weights,
        f"attention over {context:,}": attention,
        "forward": forward,
        "training": 3 * forward,
    }


def memory(model: PreTrainedModel, context: int) -> dict[str, float]:
    """Bytes that hold the model: to train it without activations, to run it with one sequence's cache, in bfloat16."""
    count = sum(parameter.numel() for parameter in model.parameters())
    cache = cache_bytes(model.config) * context
    held = {f"training, {name}": float(size * count) for name, size in TRAINING.items()}
    return held | {f"inference, {name}": float(size * count + cache) for name, size in INFERENCE.items()}


def cache_bytes(config: PreTrainedConfig) -> int:
    """Keys and values that a token leaves in a decoder's cache, in bytes of bfloat16; sliding layers drop some."""
    decoder: Any = parts(config)[-1]
    if decoder.model_type != TunerDecoderConfig.model_type:
        return 0
    return 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * 2


def draw(sizes: dict[str, int], title: str, path: Path) -> None:
    """A bar for each component."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.45 * len(sizes) + 1), layout="constrained")
    total = sum(sizes.values())
    names = list(sizes)[::-1]
    bars = axes.barh(names, [sizes[name] / 1e6 for name in names], color="tab:blue")
    axes.bar_label(bars, [f"{sizes[name] / total:.1%}" for name in names], padding=3)
    axes.set(xlabel="million parameters", title=f"{title}: {total / 1e6:,.1f} M")
    axes.margins(x=0.12)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _table(title: str, rows: dict[str, Any], form: str, share: bool = False, divisor: float = 1) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    if share:
        table.add_column("", justify="right")
        rows = {**rows, "all": sum(rows.values())}
    for name, value in rows.items():
        cells = [form.format(value / divisor if divisor != 1 else value)]
        table.add_row(name, *cells, *([f"{value / rows['all']:.1%}"] if share else []))
    return table
