"""Parameters by component, of our models and of transformers'."""

from __future__ import annotations

import re

from torch import nn

# What marks a component in a parameter's name; of several marks the last one decides: `self_attn.q_norm` is a norm.
COMPONENTS = {
    "embedding": r"embed|\b(wte|wpe|shared|position_bias|relative_attention_bias)\b",
    "attention q": r"\b(q|q_proj|q_lin|query)\b",
    "attention k": r"\b(k|k_proj|k_lin|key)\b",
    "attention v": r"\b(v|v_proj|v_lin|value)\b",
    "attention o": r"\b(o|o_proj|out_proj|out_lin)\b|attention\.output|attn\.c_proj",
    "attention, other": r"attn|attention",
    "feed-forward": r"mlp|ffn|feed_forward|DenseReluDense|\bfc\d|intermediate|layer\.\d+\.output|experts",
    "router": r"\b(router|mlp\.gate|moe\.gate)\b",
    "norm": r"norm|Norm|\bln_",
    "head": r"lm_head|prediction|score|classifier|pooler|seq_relationship|qa_outputs|\bcls\b",
}


def parameters_by_component(model: nn.Module) -> dict[str, int]:
    """Parameters of each component; a tied head counts once, with the embedding."""
    sizes = dict.fromkeys([*COMPONENTS, "other"], 0)
    for name, parameter in model.named_parameters():
        ends = {c: [found.end() for found in re.finditer(mark, name)][-1:] for c, mark in COMPONENTS.items()}
        sizes[max((end[0], c) for c, end in {**ends, "other": [0]}.items() if end)[1]] += parameter.numel()
    return {name: count for name, count in sizes.items() if count}
