"""The card computes what the CPU computes: logits of the three shapes, packed rows, the chunked loss."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from benchmarks.gpu.setting import MINILM, T5, TINY, Finding, Setting
from tuner.data.collate import collate_causal
from tuner.data.pack import pack_dataset
from tuner.model.convert import from_transformers
from tuner.ops.chunked_loss import chunked_cross_entropy

# Largest difference of logits in float32, TF32 off. In bfloat16 there is no such number: there the card may be off by
# twice what the CPU is off by in bfloat16, both measured from float32.
EXACT, ROUNDING = 1e-4, 2.0


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found - wanted‖ / ‖wanted‖ in float64, on the CPU."""
    wanted = wanted.detach().cpu().double()
    return float((found.detach().cpu().double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def decoder(setting: Setting, **changes: Any) -> PreTrainedModel:
    """Our decoder of SmolLM2's shape with random weights, the same on every call, in float32 on the CPU."""
    torch.manual_seed(0)
    return from_transformers(LlamaForCausalLM(LlamaConfig(**setting.llama(**changes)))).eval()


def shapes(setting: Setting) -> dict[str, PreTrainedModel]:
    """A decoder, an encoder and a pair of ours."""
    bert, t5 = (TINY["bert"], TINY["t5"]) if setting.small else ({}, {})
    made = {"decoder": decoder(setting)}
    torch.manual_seed(0)
    made["encoder"] = from_transformers(BertForMaskedLM(BertConfig(**{**MINILM, **bert}))).eval()
    made["encoder-decoder"] = from_transformers(T5ForConditionalGeneration(T5Config(**{**T5, **t5}))).eval()
    return made


@torch.no_grad()
def logits(setting: Setting) -> Finding:
    """Three shapes, two rows of which one is padded, in both dtypes."""
    time, rows = 24 if setting.small else 192, []
    for name, model in shapes(setting).items():
        vocabulary = getattr(model.config, "vocab_size", None) or model.config.encoder.vocab_size
        inputs = {"input_ids": torch.randint(5, vocabulary, (2, time), generator=torch.Generator().manual_seed(1))}
        inputs["attention_mask"] = torch.ones(2, time, dtype=torch.long)
        inputs["attention_mask"][1, time // 2 :] = 0
        if name == "encoder-decoder":
            inputs["decoder_input_ids"] = inputs["input_ids"].flip(1)
        real = inputs["attention_mask"].bool() if name != "encoder-decoder" else slice(None)
        there = {key: value.to(setting.device) for key, value in inputs.items()}
        wanted = model(**inputs).logits[real]
        exact = model.to(setting.device)(**there).logits.cpu()[real]
        half_there = model.bfloat16()(**there).logits.float().cpu()[real]
        half_here = model.cpu()(**inputs).logits.float()[real]
        largest = float((exact - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        rows.append({"shape": name, "float32, largest": f"{largest:.1e}"})
        ours, cpu = error(half_there, wanted), error(half_here, wanted)
        rows[-1] |= {"bfloat16": f"{ours:.2e}", "bfloat16 on the CPU": f"{cpu:.2e}"}
        _require(largest <= EXACT, f"{name}, float32: logits differ by {largest:.1e}", rows)
        _require(ours <= ROUNDING * cpu, f"{name}, bfloat16: off by {ours:.1e}, the CPU by {cpu:.1e}", rows)
    return Finding("logits of all three shapes are the CPU's", {"tables": {"Logits on the card and on the CPU": rows}})


def implementations(setting: Setting) -> dict[str, torch.dtype]:
    """Attention that can run here, and the dtype to compare it in."""
    found = {"eager": torch.float32, "sdpa": torch.float32}
    if setting.on_card:
        found["flex_attention"] = torch.float32
    if setting.on_card and is_flash_attn_2_available():
        found["flash_attention_2"] = torch.bfloat16
    if setting.on_card and is_flash_attn_3_available():
        found["flash_attention_3"] = torch.bfloat16
    return found


@torch.no_grad()
def packed(setting: Setting) -> Finding:
    """Conversations packed into blocks give the logits that each gives alone, one block at a time and eight.

    Flash attention finds the conversations of one row alone, so its blocks are joined into one, as the trainer does.
    """
    model, size = decoder(setting, num_hidden_layers=2).to(setting.device), 64 if setting.small else 512
    draw = torch.Generator().manual_seed(2)
    lengths = torch.randint(3, size // 2, (60,), generator=draw).tolist()
    ids = [torch.randint(5, model.config.vocab_size, (length,), generator=draw).tolist() for length in lengths]
    rows = [{"input_ids": row, "labels": row, "rows": [number]} for number, row in enumerate(ids)]
    blocks = pack_dataset(Dataset.from_list(rows), size)
    blocks = [blocks[number] for number in range(min(len(blocks), 8))]
    alone = {row: _alone(model, ids[row]) for block in blocks for row in block["rows"]}
    half = {row: _alone(model.bfloat16(), ids[row]).float() for row in alone}
    rounding = max(error(half[row], alone[row]) for row in alone)
    found = []
    for implementation, dtype in implementations(setting).items():
        # Made anew: from bfloat16 the weights do not come back.
        model = decoder(setting, num_hidden_layers=2).to(setting.device, dtype)
        model.set_attn_implementation(implementation)
        joins = implementation.startswith("flash")
        for count in (1, 8):
            worst = max(_packed_error(model, blocks[i : i + count], alone, joins) for i in range(0, 8, count))
            allowed = EXACT if dtype is torch.float32 else ROUNDING * rounding
            found.append(
                {"attention": implementation, "blocks": count, "off by": f"{worst:.1e}", "of": f"{allowed:.1e}"}
            )
            _require(worst <= allowed, f"{implementation}, {count} blocks: off by {worst:.1e}", found)
    names = ", ".join(implementations(setting))
    return Finding(f"packed is alone for {names}", {"tables": {"Packed against alone": found}})


def _alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device)).logits[0]


def _packed_error(
    model: PreTrainedModel, blocks: list[dict[str, Any]], alone: dict[int, torch.Tensor], joins: bool
) -> float:
    """The largest error of a conversation's logits."""
    if not blocks:
        return 0.0
    batch = collate_causal(blocks, pad_token_id=0, padding_free=joins)
    there = {name: batch[name].to(model.device) for name in ("input_ids", "position_ids")}
    together, worst = model(**there).logits, 0.0
    place = 0
    for number, block in enumerate(blocks):
        start = place if joins else 0
        for row in block["rows"]:
            length = len(alone[row])
            part = together[0 if joins else number, start : start + length]
            worst, start = max(worst, error(part, alone[row])), start + length
        place = start
    return worst


def loss(setting: Setting) -> Finding:
    """The chunked loss and all its gradients are the model's own, in float32 and under bfloat16 autocast."""
    model = decoder(setting, num_hidden_layers=2).to(setting.device).train()
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(5, model.config.vocab_size, (2, 32 if setting.small else 1024), generator=draw)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=draw) < 0.5, -100)
    ids, labels = ids.to(setting.device), labels.to(setting.device)
    exact = _gradients(model, ids, labels, False, False)
    rows = []
    for name, half, chunked in (("float32", False, True), ("bfloat16, own", True, False), ("bfloat16", True, True)):
        value, gradients = _gradients(model, ids, labels, half, chunked)
        worst = max(error(gradients[key], wanted) for key, wanted in exact[1].items())
        rows.append({"loss": name, "value": f"{value:.6f}", "gradients off by": f"{worst:.2e}"})
        if name == "float32":
            _require(abs(value - exact[0]) <= 1e-5 * exact[0], f"{name}: {value} instead of {exact[0]}", rows)
            _require(worst <= EXACT, f"{name}: gradients off by {worst:.1e}", rows)
        elif name == "bfloat16, own":
            own = worst
        else:
            _require(
                worst <= ROUNDING * own, f"{name}: gradients off by {worst:.1e}, the own loss's by {own:.1e}", rows
            )
    return Finding(f"the own loss is {exact[0]:.6f}; value and gradients agree", {"tables": {"Chunked loss": rows}})


def _gradients(
    model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor, half: bool, chunked: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of a batch and every parameter's gradient."""
    model.zero_grad()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
        if chunked:
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            where = labels[:, 1:] != -100
            targets = labels[:, 1:][where]
            value = chunked_cross_entropy(hidden[where], model.lm_head.weight, targets) / len(targets)
        else:
            value = model(input_ids=ids, labels=labels).loss
    value.backward()
    return float(value), {name: p.grad.detach().cpu() for name, p in model.named_parameters()}


class Off(AssertionError):
    """A difference that is too large, with what was found until then."""

    def __init__(self, message: str, figures: dict[str, Any]):
        super().__init__(message)
        self.figures = figures


def _require(holds: bool, message: str, rows: list[dict[str, Any]]) -> None:
    if not holds:
        raise Off(message, {"tables": {message: rows}})
