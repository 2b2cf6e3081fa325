"""Every part that a block can be built of, as the fields of one strict dataclass.

Field names follow transformers' Llama, Mixtral and T5 where a field exists there, so that the `config.json` of a
trained model reads as anyone in the ecosystem expects. The defaults are those of current decoders.
"""

# No `from __future__ import annotations` here: it turns the field types into strings, which `strict` does not check.
from dataclasses import field
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .registration import register_with_peft
from .sharding import PIPELINE_PLAN, TENSOR_PARALLEL_PLAN

CHOICES = {
    "position_embedding_type": ("rotary", "learned", "sinusoidal", "alibi", "relative", "none"),
    "norm_type": ("rmsnorm", "layernorm"),
    "norm_position": ("pre", "post", "both"),
    "attention_type": ("softmax", "linformer", "performer"),
    "mlp_type": ("gated", "plain"),
}
BIASES = ("alibi", "relative")  # positions that are added to the scores
AT_LEAST_ONE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "linformer_k", "performer_features"),
)


@strict
class TunerConfig(PreTrainedConfig):
    """What the three shapes share.

    Args:
        vocab_size: number of token embeddings.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward, or of one expert.
        num_hidden_layers: number of blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; fewer than query heads is grouped-query attention (Ainslie et al.
            2023, https://arxiv.org/abs/2305.13245), one is multi-query (Shazeer 2019, https://arxiv.org/abs/1911.02150).
            Defaults to `num_attention_heads` (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).
        head_dim: width of a head. Defaults to `hidden_size // num_attention_heads`.
        position_embedding_type: `rotary` (Su et al. 2021, https://arxiv.org/abs/2104.09864), `learned` (Gehring et al.
            2017, https://arxiv.org/abs/1705.03122), `sinusoidal` (Vaswani et al. 2017), `alibi` (Press et al. 2021,
            https://arxiv.org/abs/2108.12409), `relative`: T5's learned bias by distance (Raffel et al. 2019,
            https://arxiv.org/abs/1910.10683), or `none` (Haviv et al. 2022, https://arxiv.org/abs/2203.16634).
        max_position_embeddings: longest sequence, in tokens.
        rope_parameters: rotary positions in transformers' own form; any `rope_type` of transformers works: `linear`
            (Chen et al. 2023, https://arxiv.org/abs/2306.15595), `dynamic`, `yarn` (Peng et al. 2023,
            https://arxiv.org/abs/2309.00071), `llama3` and others.
        position_offset: rows of the learned table before that of position 0 (BART, RoBERTa).
        skip_padding_positions: count positions over real tokens alone (RoBERTa).
        relative_attention_num_buckets: distances that `relative` tells apart.
        relative_attention_max_distance: distance from which on it does not.
        norm_type: `rmsnorm` (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467) or `layernorm` (Ba et al. 2016,
            https://arxiv.org/abs/1607.06450).
        norm_position: `pre`: before a sublayer; `post`: after the sum (both in Xiong et al. 2020,
            https://arxiv.org/abs/2002.04745); `both`: before a sublayer and on its output (Ding et al. 2021,
            https://arxiv.org/abs/2105.13290).
        norm_eps: epsilon of every norm.
        attention_type: `softmax`; `linformer`: keys and values projected to a fixed number (Wang et al. 2020,
            https://arxiv.org/abs/2006.04768); `performer`: FAVOR+, softmax by positive random features (Choromanski et
            al. 2020, https://arxiv.org/abs/2009.14794). The last two are linear in time and memory.
        linformer_k: keys that `linformer` projects to.
        performer_features: random features of `performer`; the error falls with their number's square root.
        performer_seed: what those features are drawn from.
        sliding_window: tokens that a sliding layer sees (Beltagy et al. 2020, https://arxiv.org/abs/2004.05150).
        layer_types: `full_attention` or `sliding_attention` for each layer. Defaults to sliding where there is a
            window.
        attention_bias: a bias on the projections of queries, keys and values.
        attention_out_bias: a bias on the attention's output. Defaults to `attention_bias`.
        use_qk_norm: a norm over each head's query and key (Dehghani et al. 2023, https://arxiv.org/abs/2302.05442).
        attention_scale: factor on the scores. Defaults to `head_dim ** -0.5`.
        hidden_act: activation of the feed-forward: relu, gelu, gelu_new, silu, or another of transformers'.
        mlp_type: `plain`, or `gated`: SwiGLU with silu, GeGLU with gelu (Shazeer 2020,
            https://arxiv.org/abs/2002.05202).
        mlp_bias: a bias on the feed-forward's projections.
        num_local_experts: feed-forwards to route between, 0 for a single one (Shazeer et al. 2017,
            https://arxiv.org/abs/1701.06538; Mixtral: Jiang et al. 2024, https://arxiv.org/abs/2401.04088).
        num_experts_per_tok: experts that a token is sent to, 2 by default. None without experts.
        router_aux_loss_coef: weight of the load-balancing loss (Fedus et al. 2021, https://arxiv.org/abs/2101.03961).
        output_router_logits: return the router's logits. Without experts there is neither attribute: TRL takes every
            configuration that has them for a mixture.
        embedding_scale: factor on the token embeddings.
        embedding_norm: a norm on the embeddings (BERT, BART).
        logit_scale: factor on the hidden states before the head (T5).
        lm_head_bias: a bias on the head's logits.
        tie_word_embeddings: one matrix for the embeddings and the head (Press & Wolf 2016,
            https://arxiv.org/abs/1608.05859).
        attention_dropout: dropout on the attention weights.
        hidden_dropout: dropout on the embeddings and on each sublayer's output before it joins the residual stream.
        initializer_range: standard deviation of the normal initialisation.

    Raises:
        ValueError: an impossible combination, with the reason.
        StrictDataclassFieldValidationError: a field of the wrong type, here or on assignment (huggingface_hub's).
    """

    attribute_map = {"rms_norm_eps": "norm_eps", "num_experts": "num_local_experts"}
    auto_classes: ClassVar[dict[str, str]] = {}
    base_model_pp_plan = PIPELINE_PLAN
    base_model_tp_plan = TENSOR_PARALLEL_PLAN

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    position_embedding_type: str = "rotary"
    max_position_embeddings: int = 2048
    rope_parameters: dict | None = None
    position_offset: int = 0
    skip_padding_positions: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    norm_type: str = "rmsnorm"
    norm_position: str = "pre"
    norm_eps: float = 1e-6
    attention_type: str = "softmax"
    linformer_k: int = 128
    performer_features: int = 256
    performer_seed: int = 0
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    attention_bias: bool = False
    attention_out_bias: bool | None = None
    use_qk_norm: bool = True
    attention_scale: float | None = None
    hidden_act: str = "silu"
    mlp_type: str = "gated"
    mlp_bias: bool = False
    num_local_experts: int = 0
    num_experts_per_tok: int | None = None
    # By factories, which leave no attribute on the class behind one that is deleted.
    router_aux_loss_coef: float = field(default_factory=lambda: 0.001, compare=False)
    output_router_logits: bool = field(default_factory=bool, compare=False)
    embedding_scale: float | int = 1.0
    embedding_norm: bool = False
    logit_scale: float | int = 1.0
    lm_head_bias: bool = False
    tie_word_embeddings: bool = True
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.attention_out_bias is None:
            self.attention_out_bias = self.attention_bias
        if not self.num_local_experts:
            self.num_experts_per_tok = None
            del self.router_aux_loss_coef, self.output_router_logits
        elif self.num_experts_per_tok is None:
            self.num_experts_per_tok = 2
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        if self.rope_parameters is not None:
            self.rope_parameters = dict(self.rope_parameters)  # transformers fills in defaults: not in the caller's
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rotary":
            self.rope_parameters = None
        self.validate_architecture()  # the strict dataclass calls it too, but hides the ValueError in one of its own

    def __setattr__(self, name: str, value: Any) -> None:
        """As inherited; layers that are all of one kind stay so when their number changes."""
        super().__setattr__(name, value)
        types = self.__dict__.get("layer_types")
        if name == "num_hidden_layers" and types and len(set(types)) == 1:
            self.layer_types = types[:1] * value

    def to_dict(self) -> dict[str, Any]:
        """As inherited. PEFT asks for it before it looks for the layers to adapt."""
        register_with_peft(self.model_type)
        return super().to_dict()

    def validate_architecture(self) -> None:
        """Refuse what cannot be built. Called after every construction, and by transformers before saving."""
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}.")
        for name in ("attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}): each key/value head serves the same number of query heads."
            )
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id ({self.pad_token_id}) must be below vocab_size ({self.vocab_size}).")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act!r} is none of {', '.join(sorted(ACT2FN))}.")
        self._validate_positions()
        self._validate_attention()
        self._validate_experts()

    def _validate_positions(self) -> None:
        kind = self.position_embedding_type
        if kind == "rotary":
            if self.head_dim % 2:
                raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs of dimensions.")
            rope_type, known = self.rope_parameters["rope_type"], ("default", *ROPE_INIT_FUNCTIONS)
            if rope_type not in known:
                raise ValueError(f"rope_parameters: rope_type {rope_type!r} is none of {', '.join(known)}.")
        if kind == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be even: sinusoidal positions come in pairs.")
        if kind != "learned" and self.position_offset:
            raise ValueError(f"position_offset ({self.position_offset}) shifts a learned table; positions are {kind}.")
        if kind == "learned" and self.skip_padding_positions and not self.position_offset:
            raise ValueError("skip_padding_positions puts padding at -1: a learned table needs a position_offset of 1.")
        if (
            kind == "relative"
            and not 4 <= self.relative_attention_num_buckets <= 2 * self.relative_attention_max_distance
        ):
            raise ValueError(
                f"relative_attention_num_buckets ({self.relative_attention_num_buckets}) must be at least 4 and at "
                f"most twice relative_attention_max_distance ({self.relative_attention_max_distance})."
            )

    def _validate_attention(self) -> None:
        kind = self.attention_type
        if kind != "softmax" and self.position_embedding_type in BIASES:
            raise ValueError(
                f"attention_type {kind} never has a matrix of scores, and position_embedding_type "
                f"{self.position_embedding_type} is added to one."
            )
        layers = self.layer_types or []
        sliding = "sliding_attention" in layers
        if kind != "softmax" and sliding:
            raise ValueError(f"attention_type {kind} never has a matrix of scores that a sliding window could cut.")
        if len(layers) != self.num_hidden_layers or {*layers} - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"layer_types must name full_attention or sliding_attention for each of the {self.num_hidden_layers} "
                f"layers, not {layers}."
            )
        if sliding and (self.sliding_window is None or self.sliding_window < 1):
            raise ValueError(f"sliding_attention needs a sliding_window of at least 1, not {self.sliding_window}.")

    def _validate_experts(self) -> None:
        if not self.num_local_experts:
            return
        if self.num_experts_per_tok is None or self.num_experts_per_tok < 1:
            raise ValueError(f"num_experts_per_tok must be at least 1, not {self.num_experts_per_tok}.")
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) cannot exceed num_local_experts "
                f"({self.num_local_experts})."
            )
        if self.mlp_bias:
            raise ValueError("mlp_bias and num_local_experts exclude each other: experts have no biases.")
        if self.mlp_type != "gated":
            raise ValueError(
                "num_local_experts needs mlp_type gated: transformers' grouped products are for gated ones."
            )
