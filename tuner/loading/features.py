"""What a head sees of a frozen backbone, computed once: one vector a text, or one a token.

A head is then trained on those vectors alone, so that an epoch costs seconds. They are kept on disk, by the backbone's
weights, the tokens and the pooling, for the next run and for `tuner features`.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from tuner.errors import ModelError
from tuner.model.encoder_stack import masked_mean

# Tokens that a backbone computes at once, and what lengths are rounded up to.
TOKENS, MULTIPLE = 4096, 8
# A model's forward pass without an objective in it.
Forward = Callable[..., Any]


def freeze(model: PreTrainedModel) -> None:
    """Leave only what follows the backbone to be trained: the head, and a pooler."""
    base = model.base_model
    base.requires_grad_(False)
    if isinstance(getattr(base, "pooler", None), nn.Module):
        base.pooler.requires_grad_(True)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Hidden states `(batch, time, hidden_size)` as what `pooling` takes of them: `(batch, time or 1, hidden_size)`."""
    if pooling == "tokens":
        return states
    if pooling == "mean":
        return masked_mean(states, mask)[:, None]
    place = mask.sum(dim=1) - 1 if pooling == "last" else torch.zeros_like(mask[:, 0])
    return states[torch.arange(len(states), device=states.device), place][:, None]


@contextmanager
def replayed(model: PreTrainedModel, states: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """Within it the backbone's output is `states` `(batch, time, hidden_size)`; yields the inputs to call the model
    with."""
    base = model.base_model
    pooler = getattr(base, "pooler", None)
    pooled = states[:, 0]
    if isinstance(pooler, nn.Module):  # ours takes the first token, transformers' all of them
        pooled = pooler(states[:, 0] if hasattr(base, "averages") else states)
    output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states, pooler_output=pooled)
    ids = torch.full(states.shape[:2], int((model.config.pad_token_id or 0) == 0), device=states.device)
    base.forward = lambda *args, **kwargs: output
    try:
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    finally:
        del base.forward


@torch.no_grad()
def pooling_of(model: PreTrainedModel, forward: Forward, poolings: Sequence[str] = ("mean", "cls", "last")) -> str:
    """What a head looks at: the `cls`, `last` or `mean` of a text's tokens, or all `tokens`; found by trying, in order.

    Raises:
        ModelError: a head that looks at anything else.
    """
    vocabulary, device = model.config.get_text_config().vocab_size, model.device
    pad = model.config.pad_token_id or 0
    ids = torch.tensor([[7, 11, 13, 17, 19], [23, 29, 31, 7, 11]]) % vocabulary
    mask = (torch.arange(5) < torch.tensor([[5], [3]])).long()
    ids = ids.masked_fill(ids == pad, (pad + 1) % vocabulary).masked_fill(mask == 0, pad).to(device)
    mask, was_training = mask.to(device), model.training
    model.eval()
    try:
        wanted = forward(model, input_ids=ids, attention_mask=mask)[0].float()
        states = model.base_model(input_ids=ids, attention_mask=mask)[0]
        for pooling in poolings:
            with replayed(model, pool(states, mask, pooling)) as inputs:
                found = forward(model, **inputs)[0].float()
            if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-3, atol=1e-3):
                return pooling
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError):
        pass  # a head that wants more than hidden states
    finally:
        model.train(was_training)
    raise ModelError(f"--strategy head: the head of {type(model).__name__} needs more than the vectors of a text.")


@torch.no_grad()
def features(
    backbone: Any, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, pad: int, pooling: str
) -> list[np.ndarray]:
    """The pooled hidden states of sequences, each `(1 or its tokens, hidden_size)` in float32. In batches by length."""
    order = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
    found: list[Any] = [None] * len(sequences)
    device, was_training = next(backbone.parameters()).device, backbone.training
    backbone.eval()
    start = 0
    while start < len(order):
        longest = len(sequences[order[start]])
        time = -(-longest // MULTIPLE) * MULTIPLE
        batch = order[start : start + max(TOKENS // time, 1)]
        lengths = torch.tensor([len(sequences[row]) for row in batch])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        inputs = {"input_ids": _padded(sequences, batch, longest, pad), "attention_mask": mask}
        if types is not None:
            inputs["token_type_ids"] = _padded(types, batch, longest, 0)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        states = pool(backbone(**inputs)[0], inputs["attention_mask"], pooling).float().cpu().numpy()
        for row, length, each in zip(batch, lengths, states, strict=True):
            found[row] = each[:length].copy()
        start += len(batch)
    backbone.train(was_training)
    return found


def _padded(sequences: Sequence[Sequence[int]], rows: np.ndarray, time: int, value: int) -> torch.Tensor:
    out = torch.full((len(rows), time), value)
    for line, row in zip(out, rows, strict=True):
        line[: len(sequences[row])] = torch.as_tensor(sequences[row])
    return out


def kept_features(
    backbone: Any, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, pad: int, pooling: str
) -> list[np.ndarray]:
    """As `features`, from `$HF_HOME/tuner/features` where they were computed before, and kept there."""
    half = torch.is_autocast_enabled(next(backbone.parameters()).device.type)
    digest = hashlib.blake2b(repr((type(backbone).__name__, pooling, pad, half)).encode(), digest_size=16)
    for name, value in backbone.state_dict().items():
        if not name.startswith("pooler."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for sequence in (*sequences, *(types or ())):
        digest.update(np.asarray([len(sequence), *sequence], np.int64).tobytes())
    file = Path(HF_HOME) / "tuner" / "features" / f"{digest.hexdigest()}.npz"
    with contextlib.suppress(Exception):  # absent, or damaged in any way that Python can find
        kept = np.load(file)
        return np.split(kept["states"], kept["ends"][:-1])
    found = features(backbone, sequences, types, pad, pooling)
    with contextlib.suppress(OSError):  # a full disk is no reason not to train
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as staging:
            np.savez(staging, states=np.concatenate(found), ends=np.cumsum([len(each) for each in found]))
        Path(staging.name).rename(file)
    return found
