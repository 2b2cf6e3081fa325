"""How a stack is cut over several devices: within products, and between blocks.

Rules for parts that a configuration does not have are dropped when a model is built.
"""

from __future__ import annotations

PIPELINE_PLAN = {
    "embed_tokens": (["input_ids"], ["inputs_embeds"]),
    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    "norm": (["hidden_states"], ["hidden_states"]),
}

# Heads and the feed-forward's width are shared out; one sum over devices ends each sublayer. A device sees its own
# heads alone: what all devices hold of them has a gradient that is the sum of theirs.
TENSOR_PARALLEL_PLAN = {
    "position_bias.bias": "replicated_with_grad_allreduce",
    **{
        f"layers.*.{attention}.{part}": rule
        for attention in ("self_attn", "cross_attn")
        for part, rule in {
            **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "colwise"),
            "o_proj": "rowwise",
            **dict.fromkeys(("q_norm", "k_norm", "linear"), "replicated_with_grad_allreduce"),
        }.items()
    },
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
    "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
    "layers.*.mlp.experts.down_proj": "rowwise",
    "layers.*.mlp.experts": "moe_tp_experts",
}
