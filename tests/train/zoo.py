"""Every causal family of transformers, tiny: built from its configuration, for the probe's test and for docs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from tests.engine import use_chunked_loss
from tests.model.helpers import scramble, token_ids
from tuner.train.probe import probe

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "dim_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_attention_layers"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("dropout", "attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "state_size", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    "vocab_size": 64,
    "num_experts_per_tok": 2,
    **dict.fromkeys(("moe_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    "rotary_dim": 4,
    # What checkpoints of the families have, where the default is 1.
    "logits_scaling": 8.0,
    "lm_head_multiplier": 0.5,
    "attention_hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a family needs beside, or instead; None leaves a field at its default.
OWN: dict[str, dict[str, Any]] = {
    "dots1": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2},
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_expand": 2,
        "mamba_d_state": 8,
        "attn_layer_indices": [1],
    },
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_expand": 2,
        "layer_types": ["mamba", "attention"],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "num_attention_heads": 2,
        "attention_head_size": 16,
        "feed_forward_size": 32,
        "num_buckets": 2,
        "hash_seed": 0,  # it takes torch's seed from the clock otherwise
        **dict.fromkeys(("hidden_dropout_prob", "local_attention_probs_dropout_prob"), 0.0),
        "lsh_attention_probs_dropout_prob": 0.0,
    },
    "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "xlnet": {"max_position_embeddings": None},
    "zamba2": {
        "layer_types": ["mamba", "hybrid"],
        "n_mamba_heads": 8,
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "attention_head_dim": 16,
    },
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"]},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "axk2": {"num_key_value_heads": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen4_exp": {"layer_types": ["linear_attention", "full_attention"]},
}


def small(kind: type, name: str = "") -> dict[str, Any]:
    """The fields that make a configuration small, and those of its parts."""
    base, fields = kind(), {}
    for key, value in SIZES.items():
        try:
            present = hasattr(base, key)
        except Exception:  # a field that every layer has its own of: the global one can be set
            present = True
        if present and not isinstance(getattr(kind, key, None), property):
            fields[key] = value
    for key, part in (kind.sub_configs or {}).items():
        if isinstance(part, type) and part.__name__ != "AutoConfig":
            fields[key] = small(part, part.model_type)
    fields |= OWN.get(name, {})
    return {key: value for key, value in fields.items() if value is not None}


def build(name: str) -> PreTrainedModel:
    """A causal model of one family with new weights, in float32 and evaluation mode.

    Raises:
        Exception: whatever the family has against it.
    """
    problem: Exception | None = None
    for change in ({}, {"num_key_value_heads": 4}, {"head_dim": None}, {"layer_types": None, "num_hidden_layers": 4}):
        try:
            return _build(name, change)
        except Exception as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _build(name: str, change: dict[str, Any]) -> PreTrainedModel:
    kind = CONFIG_MAPPING[name]
    fields = {key: value for key, value in {**small(kind, name), **change}.items() if value is not None}
    config = kind(**fields)
    if getattr(config, "is_encoder_decoder", False):
        config.is_encoder_decoder = False
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if count > 4e7:
        raise MemoryError(f"{count:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model(input_ids=torch.arange(3, 13)[None])
    return model


class Answer(NamedTuple):
    """Of a probe, or of a comparison at length."""

    packing: bool
    padding: bool
    chunked_loss: bool


def probed(model: PreTrainedModel, autocast: torch.dtype | None = None) -> Answer:
    """What the probe says."""
    found = probe(model, autocast=autocast)
    return Answer(found.packing, found.padding, found.chunked_loss)


def compared(model: PreTrainedModel) -> Answer:
    """What longer sequences say, through weights that matter. The weights are changed for good."""
    scramble(model)
    return Answer(*(_holds(check, model) for check in (_packs, _pads, _chunks)))


def _holds(check: Callable[[PreTrainedModel], bool], model: PreTrainedModel) -> bool:
    try:
        return check(model)
    except Exception:  # a model that cannot do it cannot be trained so
        return False


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-3 * other.abs().max())


@torch.no_grad()
def _packs(model: PreTrainedModel) -> bool:
    for batch, lengths in ((1, (19, 4, 23)), (3, (3, 20, 9, 14))):
        rows = token_ids(batch, sum(lengths), vocab_size=60)
        positions = torch.cat([torch.arange(n) for n in lengths]).repeat(batch, 1)
        packed = model(input_ids=rows, position_ids=positions, use_cache=False).logits
        alone = [model(input_ids=part, use_cache=False).logits for part in rows.split(lengths, dim=1)]
        if not _near(packed, torch.cat(alone, dim=1)):
            return False
    return True


@torch.no_grad()
def _pads(model: PreTrainedModel) -> bool:
    rows, lengths = token_ids(3, 30, vocab_size=60), (30, 7, 18)
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = 50  # not the id that some families know as padding: a tokenizer's may be another
    padded = model(input_ids=rows, use_cache=False).logits
    alone = [model(input_ids=rows[i : i + 1, :n], use_cache=False).logits for i, n in enumerate(lengths)]
    return all(_near(padded[i : i + 1, :n], alone[i]) for i, n in enumerate(lengths))


def _chunks(model: PreTrainedModel) -> bool:
    """Loss and every gradient, with the chunked loss in place, under a head that makes large logits."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    ids = token_ids(2, 64, vocab_size=60)  # all positions: Reformer trains with no fewer
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3, -100)

    def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(0)  # dropout that no module shows, jitter of a router
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.train()  # in which the chunked loss is a mean
    own, gradients = losses()
    use_chunked_loss(model)
    chunked, found = losses()
    scale = max(float(g.abs().max()) for g in gradients.values())
    same = all(float((found[n] - g).abs().max()) <= 1e-2 * scale for n, g in gradients.items() if n in found)
    return _near(chunked, own) and same and found.keys() == gradients.keys()


def table() -> str:
    """The families in Markdown, a line each."""
    lines = ["| family | trains packed | chunked loss | note |", "|---|---|---|---|"]
    for name in FAMILIES:
        try:
            model = build(name)
        except Exception as error:
            lines.append(f"| {name} | ? | ? | not built small: {type(error).__name__} |")
            continue
        found = probe(model)
        note = "" if found.padding else "needs a mask beside padding"
        lines.append(
            f"| {name} | {'yes' if found.packing else 'no'} | {'yes' if found.chunked_loss else 'no'} | {note} |"
        )
    return "\n".join(lines) + "\n"


HEADER = """# What the causal models of transformers can be trained with

Found by the probe that a run starts with (`tuner/train/probe.py`), on a small model of each family with SDPA attention,
or what the family has instead. Written by `python -m tests.train.zoo docs/models.md`.

"""

if __name__ == "__main__":
    logging.set_verbosity(logging.CRITICAL)
    Path(sys.argv[1]).write_text(HEADER + table(), encoding="utf-8")
