"""Every causal family of transformers that can be built tiny: trained for three steps, saved, loaded and asked.

As a program it writes docs/models.md: `python -m tests.zoo.zoo [FAMILY ...]` (a quarter of an hour on one core).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import tuner
from tests.text import samples
from tuner.errors import TunerError, one_line

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# Of transformers; ours may have been registered by now.
FAMILIES = sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not name.startswith("tuner_"))
MOST = 20_000_000  # parameters
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers")
# Fields of configurations, whatever a family calls them.
TINY: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "dim", "n_embed"), 32
    ),
    **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_heads_kv"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size", "mlp_hidden"), 64),
    **dict.fromkeys(("head_dim", "kv_lora_rank", "q_lora_rank", "v_head_dim", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length"), 512),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"), 4),
    "sliding_window": 64,
    **dict.fromkeys(("layer_types", "mlp_layer_types", "block_types"), None),
}
# What some families need besides: sizes that must go together.
MORE: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "falcon_mamba": {"time_step_rank": 4},
    "ctrl": {"dff": 64},
    "xglm": {"attention_heads": 4},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
        "layer_types": ["mamba", "attention"],
    },
}
# Fields that are left alone where the family does not take them, and how many layers it takes to have all kinds.
UNSET = ({}, {"layer_types", "mlp_layer_types", "block_types", "layers_block_type"}, {"head_dim"}, {"sliding_window"})
DEPTHS = (2, 4, 8)


class Found(NamedTuple):
    """A line of the page: what became of a family."""

    family: str
    outcome: str
    packed: str = ""
    chunked: str = ""
    adapter: str = ""

    def line(self) -> str:
        return f"| {self.family} | {self.outcome} | {self.packed} | {self.chunked} | {self.adapter} |"


def tiny_configs(family: str, vocab_size: int) -> Iterator[PreTrainedConfig]:
    """Configurations of the family with sizes for a test, of which one may do."""
    kind = CONFIG_MAPPING[family]
    whole = kind()
    more = MORE.get(family, {})
    latent = _has(whole, "kv_lora_rank")  # keys of as many heads as queries, in parts of their own
    wanted = {**TINY, **({"num_key_value_heads": 4} if latent else {}), **more, "vocab_size": vocab_size}
    wanted |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    fields = {name: value for name, value in wanted.items() if name in more or _has(whole, name)}
    if latent:
        fields.pop("head_dim", None)
    for depth in DEPTHS:
        for left_alone in UNSET:
            given = {
                name: depth if name in LAYERS else value for name, value in fields.items() if name not in left_alone
            }
            with contextlib.suppress(Exception):
                yield kind(**given)


def _has(config: PreTrainedConfig, name: str) -> bool:
    """Whether a configuration has a field that may be set."""
    try:
        getattr(config, name)
    except Exception:
        return False
    found = getattr(type(config), name, None)
    return not isinstance(found, property) or found.fset is not None


def build(family: str, vocab_size: int) -> Any:
    """A tiny model of the family, or the reason why there is none."""
    reason = "no configuration of these sizes"
    try:
        configs = list(tiny_configs(family, vocab_size))
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)[:90]}"
    for config in configs:
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if size > MOST:
                return f"{size / 1e6:.0f} M parameters at the sizes of this test"
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                model.eval()(input_ids=torch.arange(3, 12)[None])
            return model
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)[:90]}"
    return reason


def try_family(family: str, folder: Path) -> Found:
    """Train a tiny model of the family on twenty conversations, save it, load it and let it write. What tuner refuses
    is an outcome; anything else that is raised after the model is built is a fault."""
    tokenizer = samples.small()
    model = build(family, len(tokenizer) + 24)
    if isinstance(model, str):
        return Found(family, f"not built: {model}".replace("|", "/"))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"messages": turns}) + "\n" for turns in samples.conversations(20)]
    rows.write_text("".join(lines), encoding="utf-8")
    try:
        trainer = train(folder, "run", tuner.RecipeArguments)
    except TunerError as error:
        return Found(family, f"refused: {one_line(error)[:160]}")
    objective = trainer.objective
    again = AutoModelForCausalLM.from_pretrained(folder / "run").eval()
    asked = objective.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    written = again.generate(asked["input_ids"], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert written.shape[1] == asked["input_ids"].shape[1] + 5
    layout = objective.layout
    packed = "joined" if layout.padding_free else "packed" if layout.packing else "no"
    return Found(family, "trained", packed, "yes" if layout.chunked_loss else "no", try_adapter(folder))


def train(folder: Path, name: str, kind: Any, **more: Any) -> tuner.Trainer:
    """Three steps on the rows in a folder, as a recipe takes them; the model is saved in it under `name`."""
    args = kind(
        model_name_or_path=str(folder / "base"), dataset_name=str(folder / "rows.jsonl"), max_steps=3, max_length=128,
        output_dir=str(folder / name), per_device_train_batch_size=4, eval_strategy="no", eval_on_start=False,
        save_strategy="no", test_split_size=2, use_cpu=True, logging_steps=1, max_labels_lost=1.0, learning_rate=1e-3,
        **more,
    )  # fmt: skip
    run = tuner.open_run(args, tuner.SFT)
    rows = tuner.load_rows(run)
    tokenizer = tuner.load_tokenizer(run, rows)
    model = tuner.load_model(run, tokenizer)
    objective = tuner.make_objective(run, tokenizer, model)
    trainer = tuner.Trainer(model, run, objective, tuner.make_examples(run, rows, objective))
    trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(torch.isfinite(torch.tensor(losses))), losses
    return trainer


def try_adapter(folder: Path) -> str:
    """Train an adapter with the targets that are derived from the model, and load it by PEFT."""
    try:
        trainer = train(folder, "adapter", tuner.AdapterArguments, use_peft=True)
    except TunerError as error:
        return f"refused: {one_line(error)[:120]}".replace("|", "/")
    again = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter").eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids).logits for model in (trainer.model.eval(), again))
        with again.disable_adapter():
            base = again(input_ids=ids).logits
    learnt = float((ours - base).abs().max())
    assert learnt > 0 and float((ours - theirs).abs().max()) <= 0.1 * learnt, learnt
    return "yes"


def quietly(family: str) -> Found:
    """As `try_family`, in a folder of its own and without what libraries print."""
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        return try_family(family, Path(folder))


def page(found: list[Found]) -> str:
    """docs/models.md."""
    trained = sum(each.outcome == "trained" for each in found)
    return "\n".join(
        [
            "# Models",
            "",
            f"The {len(found)} causal families of transformers {transformers.__version__}, each built tiny with",
            "new weights, trained for three steps on twenty conversations, saved, loaded by `AutoModelForCausalLM` and",
            f"asked for five tokens: {trained} were trained. `python -m tests.zoo.zoo` writes this page, and",
            "`make test-long` compares it.",
            "",
            "**Packed**: what a probe of the model found before training. *Joined*, the sequences of a batch lie in",
            "one row, without padding; *packed*, several in a row of a fixed length; *no*, each has a row of its own.",
            "**Chunked loss**: whether the loss is computed without a matrix of tokens by vocabulary.",
            "**LoRA**: an adapter with the targets that are derived from the model, trained, saved, and loaded by PEFT",
            f"with equal logits: {sum(each.adapter == 'yes' for each in found)} families.",
            "",
            "| family | outcome | packed | chunked loss | LoRA |",
            "|---|---|---|---|---|",
            *(each.line() for each in found),
            "",
        ]
    )


if __name__ == "__main__":
    results = []
    for name in sys.argv[1:] or FAMILIES:
        try:
            results.append(quietly(name))
        except Exception as error:  # a fault, to be mended
            results.append(Found(name, f"FAULT {type(error).__name__}: {one_line(error)[:160]}"))
        print(results[-1].line(), flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page(results), encoding="utf-8")
