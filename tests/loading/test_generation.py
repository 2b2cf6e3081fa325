"""Many prompts at once: each gets what it gets alone, in any company, whatever ran before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.model.helpers import SHAPE, scramble
from tests.text.samples import small, texts
from tuner.errors import DataError
from tuner.loading.generation import generate_texts, room
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM, TunerSeq2SeqConfig
from tuner.model import TunerSeq2SeqForConditionalGeneration as OurPair
from tuner.ops.block_attention import BLOCK_ATTENTION

ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**SHAPE, "vocab_size": 1000}
BART = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128},
}
MODELS: dict[str, Any] = {
    "ours": lambda: TunerDecoderForCausalLM(TunerDecoderConfig(**WIDE, **ENDS)),
    "ours, learnt positions": lambda: TunerDecoderForCausalLM(
        TunerDecoderConfig(**WIDE, **ENDS, position_embedding_type="learned")
    ),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, **ENDS)),
    "GPT-2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=1000, **ENDS)
    ),
    "our encoder-decoder": lambda: OurPair(TunerSeq2SeqConfig(encoder={**WIDE}, decoder={**WIDE, **ENDS}, **ENDS)),
    "T5": lambda: T5ForConditionalGeneration(
        T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=1000, decoder_start_token_id=0, **ENDS
        )
    ),
    "BART": lambda: BartForConditionalGeneration(
        BartConfig(**BART, vocab_size=1000, decoder_start_token_id=2, forced_eos_token_id=None, **ENDS)
    ),
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    return scramble(MODELS[name]())


def prompts(count: int = 7) -> list[Any]:
    """Real ones of very different lengths: of tensors and of lists."""
    lengths = [3, 60, 17, 1, 35, 60, 8, 22, 41][:count]
    whole = small()(" ".join(texts()), add_special_tokens=False, verbose=False)["input_ids"]
    ids = [whole[100 * n : 100 * n + length] for n, length in enumerate(lengths)]
    return [{"input_ids": torch.tensor([row])} if n % 2 else row for n, row in enumerate(ids)]


def generate(model: Any, asked: Any, **how: Any) -> dict[int, str]:
    return dict(generate_texts(model, small(), asked, **{"max_new_tokens": 10, **how}))


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_writes_what_each_writes_alone(name):
    model, asked = make(name), prompts()
    together = generate(model, asked, batch_size=4)
    assert together == {n: generate(model, [prompt])[0] for n, prompt in enumerate(asked)}
    assert len(set(together.values())) > 2 and all(together.values()), "the prompts matter"


def test_attention_by_blocks_writes_the_same():
    model, asked = make("ours"), prompts()
    plain = generate(model, asked)
    model.set_attn_implementation(BLOCK_ATTENTION)
    assert generate(model, asked) == plain


@pytest.mark.parametrize("name", ["Llama", "T5"])
def test_it_is_the_models_own_generate(name):
    model, [prompt] = make(name), prompts(1)
    own = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)[0]
    assert generate(model, [prompt])[0] == small().decode(
        own[0 if name == "T5" else len(prompt) :], skip_special_tokens=True
    )


def test_the_longest_prompts_come_first_in_batches_of_their_length():
    model, asked = make("ours"), prompts()
    seen: list[Any] = []
    own = model.generate
    model.generate = lambda **inputs: seen.append(inputs["attention_mask"].sum(dim=1).tolist()) or own(**inputs)
    order = [number for number, _ in generate_texts(model, small(), asked, max_new_tokens=2, batch_size=3)]
    assert seen == [[60, 60, 35], [17, 8, 3], [1]] and order == [1, 5, 4, 2, 6, 0, 3]


SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "batch_size": 2}


@pytest.mark.parametrize("name", ["ours", "our encoder-decoder"])
def test_samples_depend_on_the_seed_and_on_nothing_that_ran_before(name):
    model, asked = make(name), prompts()
    torch.manual_seed(5)
    first = generate(model, asked, seed=1, **SAMPLED)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1)), "others' random numbers are left alone"
    torch.rand(3)
    assert generate(model, asked, seed=1, **SAMPLED) == first
    assert generate(model, asked, seed=2, **SAMPLED) != first
    assert generate(model, asked) != first


def test_what_is_done_is_not_asked_for_and_changes_nothing():
    model, asked = make("ours"), prompts()
    whole = generate(model, asked, **SAMPLED)
    calls: list[int] = []
    own = model.generate
    model.generate = lambda **inputs: calls.append(1) or own(**inputs)
    rest = generate(model, asked, **SAMPLED, done={1, 5, 4})  # a whole batch, and half of one
    assert rest == {number: text for number, text in whole.items() if number not in (1, 5, 4)}
    assert len(calls) == 3


def test_equal_prompts_of_different_batches_are_sampled_apart():
    model, [prompt] = make("ours"), prompts(1)
    assert len(set(generate(model, [prompt] * 6, temperature=2.0, batch_size=1).values())) > 1


@pytest.mark.parametrize("name", ["ours", "our encoder-decoder"])
def test_each_end_token_ends_a_text(name):
    """What a row writes after its end, while others go on, is no part of its text, and neither are special tokens."""
    model, asked = make(name), prompts()
    model.generation_config.eos_token_id = None
    whole = generate(model, asked)
    first = [small()(text, add_special_tokens=False)["input_ids"] for text in whole.values()]
    ends = [ids[4] for ids in first[:2] if len(ids) > 4]
    model.generation_config.eos_token_id = ends
    cut = generate(model, asked)
    assert cut != whole and all(whole[number].startswith(text) for number, text in cut.items())
    assert len({len(text) for text in cut.values()}) > 1


def test_a_prompt_near_the_last_position_cuts_no_other():
    """GPT-2 has 128 learnt positions: beyond them is an error, and a neighbour has room."""
    model, [long, short] = make("GPT-2"), ([5, 6, 7, 8] * 31, [9, 10])
    model.generation_config.eos_token_id = None
    assert (room(model, len(long)), room(model, 128), room(model, 2)) == (4, 0, 126)
    found = generate(model, [short, long], max_new_tokens=8)
    assert found[0] == generate(model, [short], max_new_tokens=8)[0]
    assert found[1] == generate(model, [long], max_new_tokens=4)[0]


@pytest.mark.parametrize("name", ["our encoder-decoder", "BART", "T5"])
def test_the_room_of_encoder_decoders(name):
    model = make(name)
    assert room(model, 4) >= 128
    assert room(model, 129) >= 1 if name == "T5" else room(model, 129) == 0


@pytest.mark.parametrize(("prompt", "message"), [([], "prompt 1 is empty"), ([5] * 128, "prompt 1 is too long: 128")])
def test_what_cannot_be_read_is_refused_before_anything_is_generated(prompt, message):
    model = make("ours")
    model.generate = None
    with pytest.raises(DataError, match=message):
        next(generate_texts(model, small(), [[3, 4], prompt], max_new_tokens=4))


def test_a_model_in_training_stays_in_training():
    model = make("ours").train()
    generate(model, prompts(2))
    assert model.training


def test_prompts_are_encoded_batch_by_batch():
    """Of many prompts no more than a batch is in tensors; texts come while the rest waits."""
    model = make("ours")
    found = generate_texts(model, small(), [[3 + n % 50] * 4 for n in range(5000)], max_new_tokens=1, batch_size=2)
    assert [next(found)[0] for _ in range(3)] == [0, 1, 2]
