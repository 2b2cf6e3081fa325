"""Trained tokenizers: each algorithm for each objective, the same from the same texts, giving them back."""

import json
import pydoc_data.topics
import re
import unicodedata
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import yaml
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer

from tests.processes import run_python
from tests.text import samples
from tuner.errors import DataError, ModelError
from tuner.text.chat import encode_conversations
from tuner.text.chat_templates import TUNER_TEMPLATE
from tuner.text.load_tokenizer import BOS, EOS, PAD, ROLES
from tuner.text.train_tokenizer import (
    BYTES,
    ESCAPE,
    OBJECTIVES,
    SPACE,
    Algorithm,
    coverage_warning,
    measure,
    train_tokenizer,
)

ALGORITHMS = get_args(Algorithm)
EVERY_ALGORITHM = pytest.mark.parametrize("algorithm", ALGORITHMS)
EVERY_OBJECTIVE = pytest.mark.parametrize("objective", OBJECTIVES)
LOSSLESS = pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTINELS = [f"<extra_id_{number}>" for number in range(100)]
# Spellings of bytes, of special tokens of every kind and of what the trainers use themselves, and odd spaces.
AWKWARD = [*("<0x41>", "<0xE2>", "<UNK>", "<mask>", "</s>", "[MASK]", "##a", PAD, EOS, SPACE, ESCAPE), ESCAPE + "1"]
AWKWARD += [
    *("0", "1", "x", "\0", "\n", "\r\n", "\t", "  ", " ", "\u00a0", "\u3000", "e\u0301", "é", "😀", "的", "the")
]
ANY_TEXT = st.text(max_size=60) | st.lists(st.sampled_from(AWKWARD), max_size=12).map("".join)


@cache
def topics():
    """Python's own help."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())][:40]


@cache
def chinese():
    """What is said in the Chinese conversations of chatterbot-corpus."""
    (package,) = find_spec("chatterbot_corpus").submodule_search_locations
    said = []
    for file in sorted(Path(package, "data", "chinese").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            said += [str(turn) for turn in turns] if isinstance(turns, list) else [str(turns)]
    assert len(said) > 1000 and max(map(max, said)) > "一"
    return said


@cache
def english():
    """Conversations, and a text of many spaces and lines."""
    return [*samples.texts(), *topics()[:15]]


@cache
def trained(algorithm, objective="clm", size=1000):
    """A tokenizer that nobody may change."""
    return train_tokenizer(english()[::2], algorithm, size, objective)


@cache
def trained_on_little(algorithm, objective):
    """One for what does not depend on what was learned."""
    return train_tokenizer(english()[:400], algorithm, 1000, objective)


def exact(tokenizer, texts):
    """The share of texts that come back from their ids unchanged."""
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return sum(back == text for back, text in zip(tokenizer.batch_decode(ids), texts, strict=True)) / len(texts)


def state(tokenizer):
    """All that a tokenizer is: its two files."""
    roles = {name: getattr(tokenizer, f"{name}_token") for name in ("pad", "bos", "eos", "unk", "cls", "sep", "mask")}
    settings = (tokenizer.padding_side, tokenizer.model_max_length, tokenizer.clean_up_tokenization_spaces)
    names = (tokenizer.all_special_tokens, tokenizer.model_input_names, tokenizer.chat_template)
    return tokenizer.backend_tokenizer.to_str(), roles, settings, names


# Special tokens.


@EVERY_ALGORITHM
@EVERY_OBJECTIVE
def test_special_tokens(algorithm, objective):
    tokenizer = trained_on_little(algorithm, objective)
    unknown = [] if algorithm == "bpe" else [tokenizer.unk_token]
    if objective == "clm":
        expected = [PAD, BOS, EOS, *unknown, *ROLES]
        assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, BOS, EOS)
        assert tokenizer.chat_template == TUNER_TEMPLATE
    elif objective == "denoise":
        expected = ["<pad>", "</s>", "<mask>", *unknown, *SENTINELS]
        assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.mask_token) == ("<pad>", "</s>", "<mask>")
        assert tokenizer.bos_token is None
    elif objective == "seq2seq":
        expected = ["<pad>", "</s>", *unknown]
        assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<pad>", "</s>", None)
    else:
        expected = BERT
        named = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        assert [getattr(tokenizer, name) for name in named] == BERT
        assert tokenizer.bos_token is None and tokenizer.eos_token is None
    assert objective == "clm" or tokenizer.chat_template is None
    assert tokenizer.convert_ids_to_tokens(range(len(expected))) == expected
    assert sorted(tokenizer.all_special_tokens) == sorted(expected)
    for number, mark in enumerate(expected):
        assert tokenizer(f"hello{mark}hello", add_special_tokens=False)["input_ids"].count(number) == 1
        assert tokenizer.decode([number], skip_special_tokens=True) == ""
    assert len(tokenizer) == 1000 == len(set(tokenizer.get_vocab().values()))
    assert tokenizer.padding_side == "right" and tokenizer.clean_up_tokenization_spaces is False


@EVERY_ALGORITHM
@EVERY_OBJECTIVE
def test_what_goes_around_texts(algorithm, objective):
    tokenizer = trained_on_little(algorithm, objective)
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("hello there", "and you?"))
    pair = tokenizer("hello there", "and you?")
    cls, sep, end = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id
    if objective == "clm":  # the chat template writes everything, and `encode_texts` what goes around plain texts
        assert tokenizer("hello there")["input_ids"] == one
    elif objective in ("denoise", "seq2seq"):
        assert tokenizer("hello there")["input_ids"] == [*one, end]
        assert pair["input_ids"] == [*one, end, *other, end]
    else:
        assert tokenizer("hello there")["input_ids"] == [cls, *one, sep]
        assert pair["input_ids"] == [cls, *one, sep, *other, sep]
        assert pair["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(other) + 1)
    assert ("token_type_ids" in pair) == (objective not in ("clm", "denoise", "seq2seq"))


@EVERY_ALGORITHM
def test_a_pretrained_tokenizer_goes_on_to_conversations(algorithm):
    tokenizer = trained(algorithm)
    conversations = samples.conversations()[:30]
    for conversation, row in zip(conversations, encode_conversations(tokenizer, conversations), strict=True):
        said = [turn["content"] for turn in conversation if turn["role"] == "assistant"]
        labels = [label for label in row["labels"] if label != -100]
        expected = [i for text in said for i in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
        assert labels == expected
        assert row["input_ids"][0] == tokenizer.bos_token_id


@EVERY_ALGORITHM
def test_a_control_token_that_a_message_quotes_is_text(algorithm):
    """In Unigram's vocabulary too, where a name would be the likeliest piece of a text that spells it."""
    tokenizer = trained(algorithm)
    conversation = samples.talk(f"what is {EOS}?", f"{EOS} ends, {BOS} begins")
    [row] = encode_conversations(tokenizer, [conversation])
    assert [row["input_ids"].count(mark) for mark in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [1, 1]
    answer = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert "".join(answer.split()) == f"{EOS}ends,{BOS}begins{EOS}"


# What comes back of a text.


@LOSSLESS
@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(text=ANY_TEXT)
def test_any_text_comes_back(algorithm, text):
    for objective in ("clm", "mlm", "denoise"):
        tokenizer = trained_on_little(algorithm, objective)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids or tokenizer.unk_token in text


@LOSSLESS
@settings(derandomize=True, database=None, deadline=None, max_examples=30)
@given(corpus=st.lists(ANY_TEXT, min_size=1, max_size=5), text=ANY_TEXT)
def test_any_text_comes_back_whatever_was_learned(algorithm, corpus, text):
    assume(any(t.replace("\0", "").replace("<UNK>", "").strip() for t in corpus))
    tokenizer = train_tokenizer(corpus, algorithm, 400, "mlm")
    assert len(tokenizer) <= 400
    for each in (*corpus, text):
        assert tokenizer.decode(tokenizer(each, add_special_tokens=False)["input_ids"]) == each


@LOSSLESS
def test_a_text_that_spells_the_tokens_is_learned_as_text(algorithm):
    """Pieces that look like bytes' tokens, special tokens or what the trainer has within, met often."""
    text = " ".join(
        f"{spelled}{i}" for i in range(30) for spelled in ("<0x41>", "[MASK]", "<UNK>", "<0xE2><0x96><0x81>")
    )
    tokenizer = train_tokenizer([text] * 3, algorithm, 600, "denoise")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@LOSSLESS
def test_other_scripts_come_back(algorithm):
    for texts in (chinese(), topics(), ["नमस्ते दुनिया", "שלום", "สวัสดีชาวโลก", "e\u0301 é ﬁ Ⅷ", "👩‍👩‍👧‍👦 🇫🇷"]):
        assert exact(trained(algorithm), texts) == measure(trained(algorithm), texts)["coverage"] == 1


def test_unigram_spells_rare_characters_in_bytes():
    tokenizer = trained("unigram", "mlm")
    assert tokenizer.tokenize("中") == [f"<0x{byte:02X}>" for byte in "中".encode()]
    assert set(BYTES) <= tokenizer.get_vocab().keys()
    letters = tokenizer.tokenize("<0x41>")
    assert "".join(letters) == "<0x41>" and not set(letters) & set(BYTES)


def test_unigram_keeps_the_characters_that_are_frequent():
    """1,300 Chinese characters in 1,000 tokens: half of what 277 others leave go to characters, the rest to pieces."""
    tokenizer = train_tokenizer(chinese(), "unigram", 1000, "mlm")
    pieces = [token for token in tokenizer.get_vocab() if token not in {*BYTES, *BERT}]
    counts = sorted((sum(text.count(piece) for text in chinese()) for piece in pieces if len(piece) == 1), reverse=True)
    assert len(tokenizer) == 1000
    assert 350 < len(counts) < 400
    assert tokenizer.tokenize("你好") in (["你好"], ["你", "好"])
    assert exact(tokenizer, chinese()) == 1


def test_wordpiece_is_berts():
    tokenizer = trained("wordpiece", "mlm")
    assert tokenizer.tokenize("Hello, zzyx!") == ["Hello", ",", *tokenizer.tokenize("zzyx"), "!"]
    assert len(tokenizer.tokenize("zzyx")) > 1
    assert all(token.startswith("##") for token in tokenizer.tokenize("zzyx")[1:])
    assert tokenizer.decode(tokenizer("is it  true ?", add_special_tokens=False)["input_ids"]) == "is it true ?"
    assert tokenizer.tokenize("你好") == ["[UNK]", "[UNK]"]
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("é")["input_ids"]
    bert = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False, strip_accents=False)
    texts = [*english(), *chinese(), "e\u0301cole\u0301", "a\u00a0b\u200bc\ufffdd\0e"]
    # One holds a number of 121 digits. BERT's first tokenizer knew words of 200 characters; this one stops at 100.
    long = [text for text in texts if re.search(r"\w{101}", text)]
    texts = [text for text in texts if text not in long]
    assert len(long) == 1 and "[UNK]" in bert.tokenize(long[0]) and "[UNK]" not in tokenizer.tokenize(long[0])
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    assert tokenizer(texts, verbose=False)["input_ids"] == bert(composed, verbose=False)["input_ids"]
    assert tokenizer(texts[:9], texts[9:18])["input_ids"] == bert(composed[:9], composed[9:18])["input_ids"]


def test_wordpiece_knows_nearly_all_characters_of_its_texts():
    tokenizer = train_tokenizer(chinese(), "wordpiece", 4000, "mlm")
    assert measure(tokenizer, chinese())["coverage"] == 1
    assert not any(token.startswith("##") and "\u4e00" <= token[2] <= "\u9fff" for token in tokenizer.get_vocab())
    # A word of letters, most of which were never met in its places.
    letters = {c for text in english() for c in text if c.isascii() and c.isalpha()}
    assert len(letters) == 52
    for word in ("".join(sorted(letters)), "".join(sorted(letters, reverse=True))):
        assert "[UNK]" not in trained("wordpiece", "mlm").tokenize(word)


def test_wordpiece_leaves_out_the_rarest_characters_where_room_is_short():
    rare = sorted(set("".join(chinese()[:200])) - set("".join(english())))[:30]
    texts = [*english(), "".join(rare)]
    short, ample = (train_tokenizer(texts, "wordpiece", size, "mlm") for size in (300, 1000))
    assert len(short) == 300 and not set(rare) & short.get_vocab().keys()
    assert set(rare) <= ample.get_vocab().keys()
    assert 0.9995 <= measure(short, texts)["coverage"] < measure(ample, texts)["coverage"] == 1


@EVERY_ALGORITHM
def test_a_larger_vocabulary_has_longer_tokens(algorithm):
    held_out = [turn["content"] for row in samples.chitchat().select(range(500, 550))["messages"] for turn in row]
    small, large = (measure(trained(algorithm, "mlm", size), held_out)["bytes_per_token"] for size in (600, 1500))
    assert 1.5 < small < large < 4


# The same texts, the same tokenizer.

HASHES = """
import hashlib, json, sys
from pathlib import Path
from tuner.text.train_tokenizer import train_tokenizer
texts = json.loads(Path(sys.argv[1]).read_text())
for algorithm in sys.argv[2:]:
    made = train_tokenizer(texts, algorithm, 2000, "mlm").backend_tokenizer.to_str()
    print(hashlib.sha256(made.encode()).hexdigest())
"""


def in_another_process(code, *arguments, **variables):
    """What some Python prints."""
    done = run_python("-c", code, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_process_trains_the_same(tmp_path):
    """The trainers' hash tables have another order in every process; threads add in another."""
    file = tmp_path / "texts.json"
    file.write_text(json.dumps([*english()[-800:], *chinese()]))
    one, other = (
        in_another_process(HASHES, file, *ALGORITHMS, PYTHONHASHSEED=seed, TOKENIZERS_PARALLELISM=parallel).split()
        for seed, parallel in (("0", "false"), ("1", "true"))
    )
    assert one == other and len(set(one)) == 3


@EVERY_ALGORITHM
def test_ties_are_broken_the_same_way(algorithm):
    """Words that are all as frequent, of pieces that are all as frequent."""
    words = [a + b + c for a in "bdfg" for b in "aeiou" for c in ("ln", "nl", "rt", "tr")]
    made = {state(train_tokenizer(words * 2, algorithm, 400, "mlm"))[0] for _ in range(8)}
    assert len(made) == 1


@EVERY_ALGORITHM
def test_texts_come_once_or_again(algorithm):
    """A generator, a list and a column that is read from disk anew."""
    texts = samples.chitchat()[:10]["messages"]
    texts = [turn["content"] for turns in texts for turn in turns]
    column = Dataset.from_dict({"text": texts})["text"]
    made = {state(train_tokenizer(kind, algorithm, 450, "mlm"))[0] for kind in (iter(texts), texts, column)}
    assert len(made) == 1


# Saved and loaded.

LOAD = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
texts = json.loads(Path(sys.argv[1], "texts.json").read_text())
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(Path(sys.argv[1], folder))
    encoded = tokenizer(texts[0::2], texts[1::2], verbose=False)
    decoded = tokenizer.batch_decode(encoded["input_ids"])
    print(json.dumps([dict(encoded), decoded, tokenizer.special_tokens_map, sorted(tokenizer.all_special_tokens)]))
"""


@EVERY_ALGORITHM
@EVERY_OBJECTIVE
def test_saved_and_loaded_it_is_the_same(algorithm, objective, tmp_path):
    tokenizer = train_tokenizer(english()[:50], algorithm, 450, objective, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert state(loaded) == state(tokenizer) and loaded.model_max_length == 77
    texts = [*english()[:40], *chinese()[:20], *AWKWARD]
    one, other = (each(texts, texts[::-1], verbose=False) for each in (tokenizer, loaded))
    assert dict(one) == dict(other)
    assert tokenizer.batch_decode(one["input_ids"]) == loaded.batch_decode(one["input_ids"])


@pytest.mark.slow
def test_another_process_loads_the_same(tmp_path):
    texts = [*english()[:40], *chinese()[:40], *AWKWARD[:24]]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    expected = {}
    for algorithm in ALGORITHMS:
        for objective in ("clm", "mlm", "denoise"):
            tokenizer = trained_on_little(algorithm, objective)
            tokenizer.save_pretrained(tmp_path / f"{algorithm}-{objective}")
            ours = tokenizer(texts[0::2], texts[1::2], verbose=False)
            row = [dict(ours), tokenizer.batch_decode(ours["input_ids"])]
            row += [tokenizer.special_tokens_map, sorted(tokenizer.all_special_tokens)]
            expected[f"{algorithm}-{objective}"] = row
    printed = in_another_process(LOAD, tmp_path, *expected).splitlines()
    for (name, row), line in zip(expected.items(), printed, strict=True):
        assert json.loads(line) == row, name


# Errors.


@EVERY_ALGORITHM
@EVERY_OBJECTIVE
def test_too_small_a_vocabulary_is_refused(algorithm, objective):
    """The least that the error names is enough, and one less is not."""
    texts = english()[:20]
    with pytest.raises(ModelError, match=r"--vocab_size 9 is too small: .* alone are \d+\.") as refused:
        train_tokenizer(texts, algorithm, 9, objective)
    least = int(str(refused.value).rpartition(" ")[2].rstrip("."))
    with pytest.raises(ModelError, match=rf"--vocab_size {least - 1} is too small: .* alone are {least}\."):
        train_tokenizer(texts, algorithm, least - 1, objective)
    tokenizer = train_tokenizer(texts, algorithm, least, objective)
    assert len(tokenizer) == least
    assert measure(tokenizer, texts)["coverage"] > 0.99
    assert exact(tokenizer, texts) == 1 or algorithm == "wordpiece"


@EVERY_ALGORITHM
@pytest.mark.parametrize("texts", [[], [""], [" ", "\n\t"], ()], ids=["none", "empty", "blank", "no tuple"])
def test_no_text_is_refused(algorithm, texts):
    with pytest.raises(DataError, match="There is no text to train a tokenizer on"):
        train_tokenizer(texts, algorithm, 500, "mlm")


# Measuring.


@EVERY_ALGORITHM
def test_figures_are_those_of_one_text_at_a_time(algorithm):
    tokenizer = trained(algorithm, "mlm")
    texts = [*english()[::4], *chinese()[:300], ""]
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    figures = measure(tokenizer, texts)
    assert figures["bytes_per_token"] == sum(len(t.encode()) for t in texts) / sum(map(len, ids))
    assert exact(tokenizer, texts) == 1 if algorithm != "wordpiece" else 0 < exact(tokenizer, texts) < 0.9


def test_what_is_lost_to_the_unknown_is_counted_in_characters():
    tokenizer = trained("wordpiece", "mlm")
    assert tokenizer.tokenize("say 你好 heλo") == ["say", "[UNK]", "[UNK]", "[UNK]"]  # a Greek letter in the last
    assert measure(tokenizer, ["say 你好 heλo"])["coverage"] == 1 - 6 / 11
    assert measure(tokenizer, ["say 你好 heλo", "say"])["coverage"] == 1 - 6 / 14


def test_a_loaded_tokenizer_is_measured():
    figures = measure(samples.smollm2(), english())
    assert exact(samples.smollm2(), english()) == figures["coverage"] == 1
    assert figures["bytes_per_token"] > measure(trained("bpe"), english())["bytes_per_token"]


THAI = "ภาษาไทยไม่เว้นวรรคระหว่างคำ" * 12
KANA = "ひらがなとカタカナでかきます。" * 20


def test_wordpiece_knows_scripts_without_spaces():
    """Sentences of more than 200 characters, and of a few characters that were never met."""
    tokenizer = train_tokenizer([THAI, KANA, "and some English words"] * 3, "wordpiece", 400, "mlm")
    rare = "๛ヶ"
    found = measure(tokenizer, [THAI + rare[0] + THAI, KANA + rare[1] + KANA])
    assert found["coverage"] > 0.99
    assert coverage_warning(tokenizer, [THAI, KANA]) is None


def test_a_tokenizer_that_does_not_know_the_texts_is_said():
    tokenizer = train_tokenizer(["only plain English words here"] * 3, "wordpiece", 100, "mlm")
    assert "does not know 100% of the characters" in coverage_warning(tokenizer, [THAI, ""])
    assert coverage_warning(tokenizer, ["plain words"]) is None
    assert coverage_warning(tokenizer, ["", " "]) is None
    assert coverage_warning(train_tokenizer(["only words"], "bpe", 300, "clm"), [THAI]) is None
