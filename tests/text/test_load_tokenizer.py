"""Tokenizers: trained ones are complete and repeatable, loaded ones are fit to train with."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.text import samples
from tests.text.samples import train_bpe_tokenizer
from tuner.data.collate import collate_causal
from tuner.errors import ModelError
from tuner.text.chat import encode_conversations
from tuner.text.chat_templates import CHATML_TEMPLATE, TUNER_TEMPLATE
from tuner.text.load_tokenizer import (
    BOS,
    EOS,
    PAD,
    ROLES,
    load_pretrained_tokenizer,
    read_chat_template,
)

SMALLEST = 262  # 256 bytes, three special tokens, three roles


def test_special_tokens_are_distinct():
    tokenizer = samples.small()
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, BOS, EOS)
    ids = tokenizer.convert_tokens_to_ids([PAD, BOS, EOS, *ROLES])
    assert ids == [0, 1, 2, 3, 4, 5]
    assert [tokenizer.decode([i], skip_special_tokens=True) for i in ids] == [""] * 6
    assert len(tokenizer) == 1000
    assert tokenizer.padding_side == "right"
    assert tokenizer.chat_template == TUNER_TEMPLATE


def test_every_byte_is_a_token():
    vocabulary = samples.small().get_vocab()
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= vocabulary.keys()


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.text(max_size=80) | st.lists(st.sampled_from([PAD, BOS, EOS, *ROLES, " ", "\n", "é", "😀"])).map("".join))
def test_any_text_comes_back(text):
    tokenizer = samples.small()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_real_text_is_compressed_and_comes_back():
    tokenizer = samples.small()
    text = "\n".join(samples.texts())
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode()) / 2


@pytest.mark.parametrize("size", [-1, 0, 100, SMALLEST - 1])
def test_too_small_a_vocabulary_is_refused(size):
    with pytest.raises(ModelError, match=rf"--vocab_size {size} is too small.* {SMALLEST}"):
        train_bpe_tokenizer(["some text"], size)


def test_smallest_vocabulary_has_bytes_alone():
    tokenizer = train_bpe_tokenizer(["some text"], SMALLEST)
    assert len(tokenizer) == SMALLEST
    assert tokenizer.decode(tokenizer("naïve 😀")["input_ids"]) == "naïve 😀"


def test_training_twice_gives_the_same_file(tmp_path):
    for folder in ("one", "other"):
        train_bpe_tokenizer(iter(samples.texts()), 800).save_pretrained(tmp_path / folder)
    one, other = ((tmp_path / folder / "tokenizer.json").read_bytes() for folder in ("one", "other"))
    assert one == other


def test_texts_come_in_any_number_of_batches():
    """2,500 texts are three batches for the trainer; none is left out."""
    words = [f"word{i % 7}" for i in range(2500)] + ["zyzzyva"] * 40
    tokenizer = train_bpe_tokenizer(words, 400)
    assert len(tokenizer("zyzzyva")["input_ids"]) == 1


def test_saved_and_loaded_is_the_same(tmp_path):
    tokenizer = samples.small()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_pretrained_tokenizer(str(tmp_path))
    assert loaded.chat_template == TUNER_TEMPLATE
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded(samples.texts()[:300])["input_ids"] == tokenizer(samples.texts()[:300])["input_ids"]
    chat = samples.conversations()[0]
    assert loaded.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)


def test_smollm2_gets_padding_of_its_own():
    """As shipped it pads with its end token, which would hide the end from the loss."""
    tokenizer = samples.smollm2()
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert tokenizer.padding_side == "right"
    assert len(tokenizer) == 49152, "no token was added: the model has no row for it"


def bare_tokenizer(folder, *special, **roles):
    """A tokenizer with few special tokens, in a folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a few words"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("spare", ["<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>"])
def test_padding_is_a_spare_token(tmp_path, spare):
    folder = bare_tokenizer(tmp_path, "</s>", spare, eos_token="</s>", pad_token="</s>")
    assert load_pretrained_tokenizer(folder).pad_token == spare


def test_padding_that_is_right_stays(tmp_path):
    folder = bare_tokenizer(tmp_path, "</s>", "<mine>", "<pad>", eos_token="</s>", pad_token="<mine>")
    assert load_pretrained_tokenizer(folder).pad_token == "<mine>"


@pytest.mark.parametrize("roles", [{"pad_token": "</s>"}, {}], ids=["pads with its end", "no padding"])
def test_without_a_spare_token_it_pads_with_its_end(tmp_path, roles):
    """As GPT-2 does: labels are made before padding, so the end stays among them."""
    tokenizer = load_pretrained_tokenizer(bare_tokenizer(tmp_path, "</s>", eos_token="</s>", **roles), "chatml")
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    rows = encode_conversations(tokenizer, [turns, [*turns[:1], {"role": "assistant", "content": "few words"}]])
    batch = collate_causal([{**row, "rows": [0]} for row in rows], tokenizer.pad_token_id)
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(dim=1)
    assert ends.tolist() == [1, 1] and batch["input_ids"].shape[1] > len(rows[0]["input_ids"])


def test_the_end_token_that_is_named(tmp_path):
    folder = bare_tokenizer(tmp_path, "</s>", "<|im_end|>", eos_token="</s>")
    tokenizer = load_pretrained_tokenizer(folder, "chatml", eos_token="<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>" and len(tokenizer) == len(load_pretrained_tokenizer(folder))
    (row,) = encode_conversations(tokenizer, [[{"role": "assistant", "content": "b"}]])
    assert [label for label in row["labels"] if label != -100][-1] == tokenizer.eos_token_id
    new = load_pretrained_tokenizer(folder, eos_token="<|stop|>")
    assert new.eos_token_id == len(tokenizer) == len(new) - 1


def test_no_end_token_is_refused(tmp_path):
    folder = bare_tokenizer(tmp_path, "<pad>", pad_token="<pad>")
    with pytest.raises(ModelError, match="no end token"):
        load_pretrained_tokenizer(folder)


@pytest.mark.parametrize("content", [None, "not JSON", "{}", '{"version": "1.0"}'])
def test_a_broken_tokenizer_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
        (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"No tokenizer could be loaded from {tmp_path}: "):
        load_pretrained_tokenizer(str(tmp_path))


def test_chat_template_from_everywhere(tmp_path):
    assert read_chat_template("chatml") == CHATML_TEMPLATE
    file = tmp_path / "mine.jinja"
    file.write_text("{# é #}{{ messages }}", encoding="utf-8")
    assert read_chat_template(str(file)) == "{# é #}{{ messages }}"
    samples.small().save_pretrained(tmp_path / "tokenizer")
    assert read_chat_template(str(tmp_path / "tokenizer")) == TUNER_TEMPLATE


def test_chat_template_from_nowhere(tmp_path):
    with pytest.raises(ModelError, match="neither 'chatml', 'bert', a Jinja file, nor a tokenizer folder"):
        read_chat_template(str(tmp_path / "nope.jinja"))
    with pytest.raises(ModelError, match=f"--chat_template_path {tmp_path} has no tokenizer"):
        read_chat_template(str(tmp_path))
    (tmp_path / "latin.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ModelError, match=r"latin\.jinja cannot be read.*0xe9"):
        read_chat_template(str(tmp_path / "latin.jinja"))


def test_chat_template_of_a_folder_without_one(tmp_path):
    folder = bare_tokenizer(tmp_path, "</s>", "<pad>", eos_token="</s>", pad_token="<pad>")
    with pytest.raises(ModelError, match="has no chat template"):
        read_chat_template(folder)


def save_with_templates(folder, templates):
    """A tokenizer with named chat templates, as several on the Hub have (`tool_use`, `rag`)."""
    tokenizer = train_bpe_tokenizer(["some text"] * 9, SMALLEST)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_of_named_templates_the_default_is_taken(tmp_path):
    folder = save_with_templates(tmp_path, {"default": CHATML_TEMPLATE, "tool_use": "tools"})
    assert load_pretrained_tokenizer(folder).chat_template == CHATML_TEMPLATE
    assert read_chat_template(folder) == CHATML_TEMPLATE
    assert load_pretrained_tokenizer(folder, "chatml").chat_template == CHATML_TEMPLATE


def test_named_templates_without_a_default_are_listed(tmp_path):
    folder = save_with_templates(tmp_path, {"rag": CHATML_TEMPLATE, "tool_use": "tools"})
    with pytest.raises(ModelError, match=r"has the chat templates rag, tool_use and none called default\. Pass"):
        load_pretrained_tokenizer(folder)
    assert load_pretrained_tokenizer(folder, "chatml").chat_template == CHATML_TEMPLATE
    with pytest.raises(ModelError, match=f"--chat_template_path {folder} has the chat templates rag, tool_use"):
        read_chat_template(folder)
