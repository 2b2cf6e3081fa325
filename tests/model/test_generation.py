"""Generation: every strategy runs, and none depends on the cache, the padding or the company in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.model.helpers import SHAPE, VOCAB_SIZE, greatest_difference, tiny_decoder, token_ids
from tuner.model import TunerDecoderForCausalLM

NEW_TOKENS = 12
GREEDY: dict[str, Any] = {"do_sample": False}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampled": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2, "temperature": 1.5},
    "repetition penalty": {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
}
EVERY_KERNEL = pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "block_attention"])


def decoder(attn_implementation: str = "sdpa", **overrides: Any) -> TunerDecoderForCausalLM:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return tiny_decoder(attn_implementation, **{**special, **overrides})


def generate(model: TunerDecoderForCausalLM, ids: torch.Tensor, seed: int = 0, **kwargs: Any) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.generate(ids, **{"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, **kwargs})


@pytest.mark.parametrize(
    ("attn_implementation", "strategy"),
    [
        *(("sdpa", strategy) for strategy in STRATEGIES),
        # What follows the logits knows no kernel; beams reorder the cache.
        *((kernel, strategy) for kernel in ("eager", "block_attention") for strategy in ("greedy", "beams")),
    ],
)
def test_cached_is_uncached(attn_implementation: str, strategy: str) -> None:
    model, prompt = decoder(attn_implementation), token_ids(2, 7)
    cached = generate(model, prompt, use_cache=True, **STRATEGIES[strategy])
    assert cached.shape == (2, 7 + NEW_TOKENS)
    assert torch.equal(cached[:, :7], prompt)
    assert torch.equal(cached, generate(model, prompt, use_cache=False, **STRATEGIES[strategy]))


@EVERY_KERNEL
def test_static_cache_is_dynamic_cache(attn_implementation: str) -> None:
    model, prompt = decoder(attn_implementation), token_ids(2, 7)
    static = generate(model, prompt, cache_implementation="static", **GREEDY)
    assert torch.equal(static, generate(model, prompt, cache_implementation="dynamic", **GREEDY))


def test_greedy_takes_the_likeliest_token() -> None:
    """Against the plainest loop there is."""
    model, ids = decoder(), token_ids(2, 7)
    expected = ids
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(expected, use_cache=False).logits[:, -1]
        logits[:, 2] = float("-inf")  # `min_new_tokens` forbids the end
        expected = torch.cat((expected, logits.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(generate(model, ids, **GREEDY), expected)


def test_sampling_follows_its_seed_and_its_limits() -> None:
    model, prompt = decoder(), token_ids(2, 7)
    one, same = (generate(model, prompt, do_sample=True, top_k=0, temperature=2.0, seed=5) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, generate(model, prompt, do_sample=True, top_k=0, temperature=2.0, seed=6))
    greedy = generate(model, prompt, **GREEDY)
    for narrow in ({"top_k": 1}, {"top_k": 0, "top_p": 1e-6}, {"top_k": 0, "temperature": 1e-4}):
        assert torch.equal(generate(model, prompt, do_sample=True, **narrow), greedy), narrow


def test_beams_find_a_likelier_continuation_than_greedy() -> None:
    def log_likelihood(sequences: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            log_probabilities = model(sequences).logits[:, 6:-1].log_softmax(-1)
        return log_probabilities.gather(-1, sequences[:, 7:, None]).sum((1, 2))

    model, prompt = decoder(eos_token_id=None), token_ids(4, 7)
    # As many beams as tokens: for two new tokens the search is exhaustive, so it cannot do worse.
    kwargs = {"max_new_tokens": 2, "min_new_tokens": None, "do_sample": False, "eos_token_id": None}
    exhaustive = log_likelihood(generate(model, prompt, num_beams=VOCAB_SIZE, **kwargs))
    assert (exhaustive >= log_likelihood(generate(model, prompt, **kwargs)) - 1e-5).all()
    everything = torch.cartesian_prod(torch.arange(VOCAB_SIZE), torch.arange(VOCAB_SIZE))
    best = log_likelihood(torch.cat((prompt[:1].expand(len(everything), -1), everything), dim=1)).max()
    torch.testing.assert_close(exhaustive[0], best, rtol=0, atol=1e-4)


@pytest.mark.parametrize("strategy", [GREEDY, {"do_sample": False, "num_beams": 3}], ids=["greedy", "beams"])
@EVERY_KERNEL
def test_left_padded_batch_is_one_by_one(attn_implementation: str, strategy: dict[str, Any]) -> None:
    model, lengths, longest = decoder(attn_implementation), (3, 11, 7), 11
    prompts = [token_ids(1, length, seed=length) for length in lengths]
    padded = torch.cat([torch.nn.functional.pad(prompt, (longest - prompt.shape[1], 0)) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    together = generate(model, padded, attention_mask=mask, **strategy)[:, longest:]
    for row, prompt in zip(together, prompts, strict=True):
        alone = generate(model, prompt, attention_mask=torch.ones_like(prompt), **strategy)
        assert torch.equal(row, alone[0, prompt.shape[1] :])


def test_rows_that_end_are_padded() -> None:
    model, prompt = decoder(), token_ids(8, 5)
    first = generate(model, prompt, **GREEDY)[:, 5]
    kwargs = {"min_new_tokens": None, "eos_token_id": first[0].item(), **GREEDY}
    tokens = generate(model, prompt, **kwargs)[:, 5:]
    ended = first == first[0]
    assert ended.any() and not ended.all()
    assert (tokens[ended, 1:] == 0).all()
    assert (tokens[~ended, 1] != 0).all()


def test_assisted_generation_is_greedy() -> None:
    """A draft model proposes, the model disposes: the cache is cropped whenever a proposal is refused."""
    model, prompt = decoder(), token_ids(1, 7)
    expected = generate(model, prompt, **GREEDY)
    for draft in (decoder(num_hidden_layers=1), decoder(seed=3)):
        assert torch.equal(generate(model, prompt, assistant_model=draft, **GREEDY), expected)
    assert torch.equal(generate(model, prompt, prompt_lookup_num_tokens=3, **GREEDY), expected)


def test_generation_from_embeddings() -> None:
    model, prompt = decoder(), token_ids(2, 7)
    kwargs = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, **GREEDY}
    generated = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **kwargs)
    assert torch.equal(generated, model.generate(prompt, **kwargs)[:, 7:])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@EVERY_KERNEL
def test_piecewise_forward_is_one_forward(attn_implementation: str, cache: str) -> None:
    """A prompt fed in pieces of any size: positions and masks go on from what the cache holds."""
    model, ids = decoder(attn_implementation), token_ids(2, 16)
    past = DynamicCache(config=model.config) if cache == "dynamic" else StaticCache(model.config, max_cache_len=24)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        pieces = [model(piece, past_key_values=past, use_cache=True).logits for piece in ids.split((5, 1, 1, 7, 2), 1)]
    assert past.get_seq_length() == 16
    assert greatest_difference(torch.cat(pieces, dim=1), whole) <= 1e-5


def test_use_cache_follows_argument_then_configuration() -> None:
    ids = token_ids(1, 4)
    assert decoder()(ids).past_key_values.get_seq_length() == 4
    assert decoder()(ids, use_cache=False).past_key_values is None
    assert decoder(use_cache=False)(ids).past_key_values is None
    assert decoder(use_cache=False)(ids, use_cache=True).past_key_values.get_seq_length() == 4


@pytest.mark.parametrize(
    "keep",
    [
        *(pytest.param(n, id=f"last {n}") for n in (1, 3, 9)),
        pytest.param(torch.tensor([0, 4, 8]), id="positions"),
        pytest.param(torch.tensor([[1, 2], [3, 0]]), id="positions by row"),
        pytest.param(torch.arange(18).view(2, 9) % 4 == 0, id="mask"),
    ],
)
def test_logits_to_keep(keep: int | torch.Tensor) -> None:
    model, ids = decoder(), token_ids(2, 9)
    with torch.no_grad():
        everything, kept = model(ids).logits, model(ids, logits_to_keep=keep).logits
    if isinstance(keep, int):
        expected = everything[:, -keep:]
    elif keep.dtype == torch.bool:
        expected = everything[keep]
    else:
        rows = torch.arange(2)[:, None]
        expected = everything[rows, keep.expand(2, -1)]
    assert kept.shape == expected.shape
    assert greatest_difference(kept, expected) <= 1e-6


def test_hidden_states_and_attentions_are_recorded() -> None:
    model, ids = decoder("eager"), token_ids(2, 9)
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    layers, heads = SHAPE["num_hidden_layers"], SHAPE["num_attention_heads"]
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(2, 9, SHAPE["hidden_size"])] * (layers + 1)
    assert [tuple(a.shape) for a in outputs.attentions] == [(2, heads, 9, 9)] * layers
    assert torch.equal(outputs.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)  # the last one is normalised
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, 9))
        assert (weights.triu(1) == 0).all()
    plain = model(ids)
    assert plain.hidden_states is None and plain.attentions is None
    assert torch.equal(plain.logits, outputs.logits)


def test_recorded_in_generation_and_as_a_tuple() -> None:
    model, prompt = decoder("eager"), token_ids(1, 5)
    kwargs = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True, **GREEDY}
    generated = model.generate(prompt, max_new_tokens=3, min_new_tokens=3, **kwargs)
    assert [step[0].shape[-2:] for step in generated.attentions] == [(5, 5), (1, 6), (1, 7)]
    assert [len(step) for step in generated.hidden_states] == [SHAPE["num_hidden_layers"] + 1] * 3
    as_tuple = model(prompt, labels=prompt, return_dict=False)
    assert as_tuple[0].shape == () and as_tuple[1].shape == (1, 5, VOCAB_SIZE)


@pytest.mark.parametrize("given", [(), ("input_ids", "inputs_embeds")], ids=["neither", "both"])
def test_exactly_one_input(given: tuple[str, ...]) -> None:
    model, ids = decoder(), token_ids(1, 4)
    inputs = {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**{name: inputs[name] for name in given})
