"""Another family's weights in our decoder give that family's logits (LitGPT's habit)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.model.helpers import SHAPE, greatest_difference, scramble, tiny_decoder, token_ids
from tests.model.test_configuration import ROPES
from tuner.loading.checkpoints import pretrained_decoder, resolve
from tuner.model import TunerDecoderForCausalLM, TunerDecoderModel
from tuner.model.convert import from_transformers, to_transformers
from tuner.text.chat import generation_prompt
from tuner.text.load_tokenizer import load_pretrained_tokenizer

TOLERANCE = 1e-5
SMOLLM2 = "builtin:smollm2-135m-instruct"


def tiny_llama(attn_implementation: str = "sdpa", **overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **overrides})
    return scramble(LlamaForCausalLM._from_config(config, attn_implementation=attn_implementation))


def padded_batch(time: int = 20) -> dict[str, torch.Tensor]:
    """Three rows: full, padded on the left, padded on the right."""
    ids, mask = token_ids(3, time), torch.ones(3, time, dtype=torch.long)
    mask[1, :7] = mask[2, -5:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def assert_same_model(theirs: PreTrainedModel, ours: PreTrainedModel, time: int = 20) -> None:
    """The same logits on full and padded rows, wherever there is a token, and the same tokens generated greedily."""
    full, padded = {"input_ids": token_ids(2, time, seed=1)}, padded_batch(time)
    with torch.no_grad():
        assert greatest_difference(theirs(**full).logits, ours(**full).logits) <= TOLERANCE
        real = padded["attention_mask"].bool()
        assert greatest_difference(theirs(**padded).logits[real], ours(**padded).logits[real]) <= TOLERANCE
    prompts = {name: rows[:2] for name, rows in padded.items()}  # right padding is no prompt
    kwargs = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    assert torch.equal(theirs.generate(**prompts, **kwargs), ours.generate(**prompts, **kwargs))


HEADS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
}
OUTSIDE_THE_KERNEL: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "activation and epsilon": {"hidden_act": "gelu", "rms_norm_eps": 0.1},
    **{name: {"rope_parameters": dict(rope)} for name, rope in ROPES.items()},
}


@pytest.mark.parametrize(
    ("attn_implementation", "overrides"),
    [
        *(
            pytest.param(kernel, overrides, id=f"{kernel}-{name}")
            for kernel in ("eager", "sdpa", "block_attention")
            for name, overrides in HEADS.items()
        ),
        *(pytest.param("sdpa", overrides, id=f"sdpa-{name}") for name, overrides in OUTSIDE_THE_KERNEL.items()),
    ],
)
def test_llama(attn_implementation: str, overrides: dict[str, Any]) -> None:
    theirs = tiny_llama(attn_implementation, **overrides)
    ours = from_transformers(theirs)
    assert ours.config._attn_implementation == attn_implementation
    assert ours.training is theirs.training is False
    assert_same_model(theirs, ours)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_llama_past_its_length_and_back(rope_type: str) -> None:
    """These two change their frequencies with the length, and must forget the long row when a short one follows."""
    theirs = tiny_llama(max_position_embeddings=32, rope_parameters=dict(ROPES[rope_type]))
    ours = from_transformers(theirs)
    for time in (16, 64, 16):
        ids = token_ids(1, time)
        with torch.no_grad():
            assert greatest_difference(theirs(ids).logits, ours(ids).logits) <= TOLERANCE


def test_rope_types_differ() -> None:
    """That each parity above is of its own frequencies, not of ones that scaling left alone."""
    tables = [from_transformers(tiny_llama(rope_parameters=dict(rope))).model.rotary_emb for rope in ROPES.values()]
    cosines = [table(torch.zeros(1), torch.arange(100)[None])[0] for table in tables]
    # Dynamic scaling waits for rows beyond `max_position_embeddings`; until then it is the default with another theta.
    assert all(greatest_difference(a, b) > 1e-3 for i, a in enumerate(cosines) for b in cosines[:i])


def test_llama_in_training() -> None:
    """Same loss, same gradients."""
    theirs = tiny_llama(tie_word_embeddings=True)
    ours = from_transformers(copy.deepcopy(theirs))
    batch = padded_batch()
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses = [model.train()(**batch).loss for model in (theirs, ours)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    for loss in losses:
        loss.backward()
    back = dict(to_transformers(ours, "llama").named_parameters())  # parameters are shared, not their gradients
    names = {parameter.data_ptr(): name for name, parameter in back.items()}
    gradients = {names[parameter.data_ptr()]: parameter.grad for parameter in ours.parameters()}
    assert gradients.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_tensors_are_shared_and_configurations_are_not() -> None:
    theirs = tiny_llama(tie_word_embeddings=True)
    ours = from_transformers(theirs)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    pointers = [sorted(t.data_ptr() for t in model.state_dict().values()) for model in (theirs, ours)]
    assert pointers[0] == pointers[1]
    ours.config.rope_parameters["rope_theta"] = 1.0
    assert theirs.config.rope_parameters["rope_theta"] == 10000.0


def test_dtype_is_kept() -> None:
    theirs = tiny_llama().to(torch.bfloat16)
    ours = from_transformers(theirs)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.model.rotary_emb.inv_freq.dtype == torch.float32


def test_qk_norm_makes_a_difference() -> None:
    with_norm, without = tiny_decoder(use_qk_norm=True), tiny_decoder(use_qk_norm=False)
    without.load_state_dict(with_norm.state_dict(), strict=False)
    assert greatest_difference(with_norm(token_ids(1, 9)).logits, without(token_ids(1, 9)).logits) > 1e-2


def test_other_families_are_refused_by_name() -> None:
    theirs = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="gpt_neox model has no counterpart here; there are llama, mistral"):
        from_transformers(theirs)


def test_a_llama_without_head_is_a_decoder_without_one() -> None:
    assert type(from_transformers(tiny_llama().model)) is TunerDecoderModel


@pytest.mark.long
def test_smollm2() -> None:
    """A published checkpoint: SmolLM2-135M-Instruct, from its GGUF."""
    path, how = resolve(SMOLLM2)
    tokenizer = load_pretrained_tokenizer(path, **how)
    theirs = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa", **how)
    ours = pretrained_decoder(SMOLLM2, tokenizer, own_model=True, attn_implementation="sdpa")
    assert type(ours) is TunerDecoderForCausalLM
    prompt = generation_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    with torch.no_grad():
        assert greatest_difference(theirs(**prompt).logits, ours(**prompt).logits) <= TOLERANCE
    kwargs = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    tokens = ours.generate(**prompt, **kwargs)
    assert torch.equal(theirs.generate(**prompt, **kwargs), tokens)
    assert "Paris" in tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :])
