"""The shape of a `TunerDecoder` model, in one strict dataclass.

Field names follow transformers' Llama where a field exists there, so that a Llama configuration can be read field by
field and the `config.json` of a trained model reads as anyone in the ecosystem expects.
"""

# No `from __future__ import annotations` here: it turns the field types into strings, which `strict` does not check.
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# One dial sets the rest. Depth and width keep `hidden_size / num_hidden_layers` between 40 and 64, the range in which
# Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361, figure 5) found the loss flat; the key/value heads are half or a
# third of the query heads (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {  # 5.5 M parameters with its vocabulary
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {  # 30 M
        "vocab_size": 16384,
        "hidden_size": 512,
        "intermediate_size": 1280,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "base": {  # 126 M
        "vocab_size": 32768,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}


@strict
class TunerDecoderConfig(PreTrainedConfig):
    """Configuration of a decoder-only Transformer: pre-norm blocks of causal attention and a gated feed-forward.

    Args:
        vocab_size: number of token embeddings.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated feed-forward.
        num_hidden_layers: number of blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; fewer than query heads is grouped-query attention, one is multi-query.
            Defaults to `num_attention_heads`.
        head_dim: width of a head. Defaults to `hidden_size // num_attention_heads`.
        hidden_act: activation of the gate; `silu` gives SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202).
        max_position_embeddings: longest sequence, in tokens.
        initializer_range: standard deviation of the normal initialisation.
        rms_norm_eps: epsilon of every RMSNorm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467).
        rope_parameters: rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864) in transformers' own form;
            any `rope_type` of transformers works.
        attention_bias: a bias on the four attention projections.
        mlp_bias: a bias on the three feed-forward projections.
        use_qk_norm: an RMSNorm over each head's query and key before the rotation (Dehghani et al. 2023,
            https://arxiv.org/abs/2302.05442; as in Qwen3).
        attention_dropout: dropout on the attention weights.
        hidden_dropout: dropout on the embeddings and on each sublayer's output before it joins the residual stream.
        tie_word_embeddings: one matrix for the embeddings and the output head.
        use_cache: return keys and values from `forward` by default.

    Raises:
        ValueError: an impossible combination; the message names both numbers.
        StrictDataclassFieldValidationError: a field of the wrong type, here or on assignment (huggingface_hub's).
    """

    model_type = "tuner_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",  # each rank sees its own heads
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    use_qk_norm: bool = True
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.rope_parameters is not None:
            self.rope_parameters = dict(self.rope_parameters)  # transformers fills in defaults: not in the caller's
        super().__post_init__(**kwargs)
        self.validate_architecture()  # the strict dataclass calls it too, but hides the ValueError in one of its own

    def validate_architecture(self) -> None:
        """Refuse what cannot be built. Called after every construction, and by transformers before saving."""
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}): each key/value head serves the same number of query heads."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs of dimensions.")
        for name in ("attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id ({self.pad_token_id}) must be below vocab_size ({self.vocab_size}).")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act!r} is none of {', '.join(sorted(ACT2FN))}.")
        rope_type, known = self.rope_parameters["rope_type"], ("default", *ROPE_INIT_FUNCTIONS)
        if rope_type not in known:
            raise ValueError(f"rope_parameters: rope_type {rope_type!r} is none of {', '.join(known)}.")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The preset `tiny`, `small` or `base`, with any field replaced.

        Raises:
            KeyError: no such preset.
        """
        return cls(**{**PRESETS[name], **overrides})
