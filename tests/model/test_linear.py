"""Linformer and Performer: what they approximate, and what they must equal."""

from __future__ import annotations

import pytest
import torch

from tuner.model.configuration import TunerDecoderConfig, TunerEncoderConfig
from tuner.model.linear import CHUNK, TunerLinformer, TunerPerformer, _mix_causal

SIZE = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 24}


def heads(time: int, count: int = 4, scale: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, count, time, 8, generator=generator) for _ in range(3))
    return query * scale, key * scale, value


def softmax_attention(query, key, value, scaling, causal=False):
    scores = query @ key.transpose(2, 3) * scaling
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def performer(features: int, causal: bool, seed: int = 0, layer: int = 0) -> TunerPerformer:
    config = TunerEncoderConfig(**SIZE, attention_type="performer", performer_features=features, performer_seed=seed)
    made = TunerPerformer(config, layer, causal)
    made.features.copy_(made.draw_features())
    return made


@pytest.mark.parametrize("causal", [False, True])
def test_more_features_are_nearer_to_softmax(causal):
    states = heads(150, count=1)
    wanted = softmax_attention(*states, 8**-0.5, causal)
    errors = []
    for features in (32, 512, 8192):
        found = torch.stack([performer(features, causal, seed)(*states, None, 8**-0.5) for seed in range(4)])
        errors.append(float((found - wanted).norm() / wanted.norm()) / 2)
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors
    assert errors[2] < 0.05


@pytest.mark.parametrize("past", [0, 1, 40])
@pytest.mark.parametrize("time", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_chunks_are_the_whole(time, past):
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.rand(2, 3, n, 7, generator=generator) for n in (time, time + past))
    value = torch.randn(2, 3, time + past, 5, generator=generator)
    wanted = (query @ key.transpose(2, 3)).tril(past) @ value
    torch.testing.assert_close(_mix_causal(query, key, value), wanted, rtol=1e-4, atol=1e-3)


def test_a_causal_performer_does_not_look_ahead():
    query, key, value = heads(140)
    model = performer(64, causal=True)
    one = model(query, key, value, None, 8**-0.5)
    value[:, :, 100:] += 1
    two = model(query, key, value, None, 8**-0.5)
    torch.testing.assert_close(one[:, :100], two[:, :100])
    assert (one[:, 100:] - two[:, 100:]).abs().min() > 1e-3


def test_features_are_orthogonal_in_blocks_and_follow_the_seed():
    features = performer(20, causal=False).features
    for block in (features[:8], features[8:16], features[16:]):
        normed = block / block.norm(dim=1, keepdim=True)
        torch.testing.assert_close(normed @ normed.T, torch.eye(len(block)), rtol=0, atol=1e-5)
    assert torch.equal(features, performer(20, causal=False).features)
    assert not torch.allclose(features, performer(20, causal=False, seed=5).features)
    assert not torch.allclose(features, performer(20, causal=False, layer=1).features)


def linformer(k: int = 24, **fields: int) -> TunerLinformer:
    config = TunerEncoderConfig(**SIZE, attention_type="linformer", linformer_k=k, **fields)
    made = TunerLinformer(config, 0, is_causal=False)
    with torch.no_grad():
        made.key_mixture.copy_(torch.eye(k, 24))
        made.value_mixture.copy_(torch.eye(k, 24))
    return made


def test_an_identity_mixture_is_softmax_attention():
    states = heads(24)
    torch.testing.assert_close(linformer()(*states, None, 0.3), softmax_attention(*states, 0.3))


def test_grouped_keys_are_repeated():
    query, key, value = heads(24)
    found = linformer(num_key_value_heads=2)(query, key[:, :2], value[:, :2], None, 0.3)
    wanted = softmax_attention(query, *(t[:, :2].repeat_interleave(2, dim=1) for t in (key, value)), 0.3)
    torch.testing.assert_close(found, wanted)


def test_linformer_refuses_what_is_too_long():
    with pytest.raises(ValueError, match=r"at most max_position_embeddings \(24\) positions, not 25"):
        linformer()(*heads(25), None, 0.3)


def test_packed_rows_are_refused():
    from transformers import AutoModel

    model = AutoModel.from_config(
        TunerDecoderConfig(**SIZE, vocab_size=11, num_hidden_layers=1, attention_type="performer")
    )
    with pytest.raises(ValueError, match="performer attention cannot tell sequences in one row apart"):
        model(torch.ones(1, 5, dtype=torch.long), position_ids=torch.tensor([[0, 1, 2, 0, 1]]))


@pytest.mark.parametrize("shape", [TunerDecoderConfig, TunerEncoderConfig])
def test_only_a_plain_mask_is_taken(shape):
    from transformers import AutoModel

    model = AutoModel.from_config(shape(**SIZE, vocab_size=11, num_hidden_layers=1, attention_type="performer"))
    with pytest.raises(ValueError, match=r"performer attention takes a mask \(batch, time\) of real tokens only"):
        model(torch.ones(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 1, 4, 4))
