"""The plain counterpart of everything in a model that is only there for speed or memory."""

from __future__ import annotations

from transformers import PreTrainedModel

from tuner.ops.block_attention import BLOCK_ATTENTION


def use_plain_ops(model: PreTrainedModel) -> None:
    """Have a model computed by torch and transformers alone: SDPA for attention by blocks, and in our own models norm,
    gate and rotation as autograd differentiates them. The loss is plain where the layout says so."""
    for module in model.modules():
        if hasattr(type(module), "recompute"):
            module.recompute = False
    if model.config._attn_implementation == BLOCK_ATTENTION:
        model.set_attn_implementation("sdpa")
