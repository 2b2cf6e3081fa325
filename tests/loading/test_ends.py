"""End tokens: those of a checkpoint, of its tokenizer and of its chat template all stop an answer, and are saved."""

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig

from tests.text.test_load_tokenizer import bare_tokenizer
from tuner.config.arguments import RecipeArguments
from tuner.loading.chat_model import load_chat_model
from tuner.loading.models import build_model
from tuner.text.load_tokenizer import load_pretrained_tokenizer

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TURN = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|turn|>' }}{% endfor %}"
TEMPLATE = TURN + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with two end tokens of its own, and a template that ends answers with a third."""
    special = ("</s>", "<pad>", "<|turn|>", "<|call|>", "<|user|>", "<|assistant|>")
    bare_tokenizer(tmp_path, *special, eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE)
    config = LlamaConfig(**SHAPE, vocab_size=320, eos_token_id=[0, 3], pad_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def test_all_end_tokens_stop_and_are_saved(folder, tmp_path):
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0, 3]
    model, _ = build_model(
        RecipeArguments(model_name_or_path=str(folder), max_length=32),
        "decoder",
        load_pretrained_tokenizer(str(folder)),
    )
    assert model.generation_config.eos_token_id == [0, 3, 2]
    assert model.config.eos_token_id == [0, 3], "as it came"
    model.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [0, 3, 2]


def test_chat_stops_at_each(folder):
    import argparse

    flags = {"max_new_tokens": 4, "temperature": 0, "top_p": 1.0, "top_k": 0, "seed": 0}
    chat = load_chat_model(argparse.Namespace(model=str(folder), **flags))
    inputs = chat.prompt([{"role": "user", "content": "a"}])
    for end in (0, 2, 3):
        chat.model.lm_head.weight.data.zero_()
        chat.model.lm_head.weight.data[end] = 1.0
        hidden = chat.model.model(**inputs).last_hidden_state[0, -1]
        chat.model.lm_head.weight.data[end] = hidden.sign()
        output = chat.model.generate(**inputs, **chat.sampling)
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == [end]


def test_a_new_end_token_gets_a_row(tmp_path):
    """GPT-2 as it is published: it pads with its only special token, and its vocabulary is full."""
    tokens = bare_tokenizer(tmp_path, "<|endoftext|>", eos_token="<|endoftext|>")
    size = len(load_pretrained_tokenizer(tokens))
    AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=size, eos_token_id=0)
    ).save_pretrained(tokens)
    tokenizer = load_pretrained_tokenizer(tokens, "chatml", eos_token="<|im_end|>")
    assert tokenizer.eos_token_id == size
    model, _ = build_model(RecipeArguments(model_name_or_path=tokens, max_length=32), "decoder", tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == size + 1
    assert model.generation_config.eos_token_id == [0, size]
