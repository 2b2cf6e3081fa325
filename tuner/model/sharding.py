"""How a stack is cut over several devices: within products, and between blocks."""

from __future__ import annotations

from transformers import PreTrainedConfig

PIPELINE_PLAN = {
    "embed_tokens": (["input_ids"], ["inputs_embeds"]),
    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    "norm": (["hidden_states"], ["hidden_states"]),
}


def tensor_parallel_plan(config: PreTrainedConfig) -> dict[str, str]:
    """Heads and the feed-forward's width are shared out; one sum over devices ends each sublayer."""
    attentions = ["self_attn"] + (["cross_attn"] if getattr(config, "add_cross_attention", False) else [])
    plan: dict[str, str] = {}
    if config.position_embedding_type == "relative":
        plan["position_bias.bias"] = "replicated_with_grad_allreduce"
    for name in (f"layers.*.{attention}" for attention in attentions):
        plan |= {f"{name}.{kind}_proj": "colwise" for kind in "qkv"} | {f"{name}.o_proj": "rowwise"}
        if config.use_qk_norm:  # each device sees its own heads
            plan |= {f"{name}.{kind}_norm": "replicated_with_grad_allreduce" for kind in "qk"}
    if config.num_local_experts:
        return plan | {
            "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
            "layers.*.mlp.experts.down_proj": "rowwise",
            "layers.*.mlp.experts": "moe_tp_experts",
        }
    names = ("gate_proj", "up_proj") if config.mlp_type == "gated" else ("up_proj",)
    return plan | {f"layers.*.mlp.{name}": "colwise" for name in names} | {"layers.*.mlp.down_proj": "rowwise"}
