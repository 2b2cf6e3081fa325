"""Raw text to examples: nothing is lost but the last remainder, and neighbours are neighbours."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.text import samples
from tuner.corpus.segments import LONG_LINE, parts, segment_pairs, to_documents
from tuner.data.encode import encode_dataset
from tuner.data.encoding_report import EncodingReport
from tuner.data.tokens import token_blocks
from tuner.errors import DataError
from tuner.text.train_tokenizer import train_tokenizer

seeded = settings(derandomize=True, database=None, deadline=None, max_examples=100)
few = settings(seeded, max_examples=30)
words = st.sampled_from(["hello", " you", "!", "\n", "  ", "é", "漢字", " I'm", "[SEP]", "😀", "\t", "word"])
texts = st.lists(words, max_size=12).map("".join)


@cache
def tokenizer(algorithm="bpe"):
    return train_tokenizer(samples.texts()[:400], algorithm, 700, "mlm")


@cache
def documents(count=40):
    rows = samples.chitchat().select(range(count))
    return to_documents(rows.select_columns(["messages"]).add_column("source_row", list(range(count))), "messages")


def of_texts(rows):
    return Dataset.from_dict({"text": rows, "source_row": list(range(len(rows)))})


@cache
def plain_ids(text, which=None):
    return (which or tokenizer())(text, add_special_tokens=False)["input_ids"]


# ---- documents and their parts ----


def test_each_turn_of_a_conversation_is_a_line():
    messages = [[{"role": "user", "content": " one\n\ntwo  "}, {"role": "assistant", "content": "three\tfour"}]]
    made = to_documents(Dataset.from_dict({"messages": messages, "source_row": [7]}), "messages")
    assert made[:] == {"text": ["one two\nthree four"], "source_row": [7]}
    rows = of_texts(["as\nit is"])
    assert to_documents(rows, "text") is rows
    assert [text.count("\n") + 1 for text in documents()["text"]] == [
        len(turns) for turns in samples.chitchat()[:40]["messages"]
    ]


sentences = st.lists(st.sampled_from(["a" * 90, "Yes.", "no!", "Dr.", "x", "?!", "3.14", "\x0b", "\n"]), max_size=12)


@seeded
@given(sentences.map(" ".join))
@example("")
@example(" \n \n")
@example("\u2028 one \x85two\x1ethree")
@example("a" * (LONG_LINE - 2) + ". b")
@example("a" * (LONG_LINE - 3) + ". b")
def test_parts_hold_all_that_is_said(text):
    found = parts(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(part and part == part.strip() and len(part.splitlines()) == 1 for part in found)
    whole = {line.strip() for line in text.splitlines()} - {""}
    for line in whole:
        if len(line) <= LONG_LINE:
            assert line in found, "a short line stays one part"


def test_a_long_line_is_cut_after_sentences_and_nowhere_else():
    line = f"{'a' * 100} 3.14 e.g.x. {'b' * 100}!  Why?\u00a0Because"
    assert parts(line) == [f"{'a' * 100} 3.14 e.g.x.", f"{'b' * 100}!", "Why?", "Because"]
    assert parts("One. Two.") == ["One. Two."]
    assert parts("x" * 1000) == ["x" * 1000]


# ---- blocks ----


@few
@given(st.lists(texts, min_size=1, max_size=8), st.integers(2, 9), st.booleans(), st.booleans())
@example(["hello", "", "", "you"], 2, True, True)
def test_blocks_are_the_stream_and_the_remainder_goes(rows, length, has_start, has_end):
    start, end = (2 if has_start else None), (3 if has_end else None)
    ids = [plain_ids(text) for text in rows]
    stream = [token for row in ids for token in [*row, *([end] if has_end and row[-1:] != [end] else [])]]
    width = length - has_start
    if len(stream) < width:
        with pytest.raises(DataError, match=rf"the rows has {len(stream)} tokens.*--max_length {length}"):
            token_blocks(of_texts(rows), tokenizer(), length, start, end, name="the rows")
        return
    blocks = token_blocks(of_texts(rows), tokenizer(), length, start, end, name="the rows")
    found = np.array(blocks["input_ids"])
    assert blocks.column_names == ["input_ids"] and found.shape == (len(stream) // width, length)
    if has_start:
        assert (found[:, 0] == start).all()
    assert found[:, has_start:].reshape(-1).tolist() == stream[: len(stream) // width * width]


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_many_documents_are_one_stream_in_their_order(algorithm):
    """More than one batch of the tokenizer."""
    which, rows = tokenizer(algorithm), [f"row {number} {'x' * (number % 7)}" for number in range(1100)]
    found = token_blocks(of_texts(rows), which, 16, which.cls_token_id, which.sep_token_id)
    stream = [token for text in rows for token in [*plain_ids(text, which), which.sep_token_id]]
    inner = np.array(found["input_ids"])[:, 1:].reshape(-1)
    assert inner.tolist() == stream[: len(inner)] and len(stream) - len(inner) < 15
    assert found.with_format("numpy")[0]["input_ids"].dtype.kind == "i"


def test_one_block_is_enough_and_one_token_less_is_an_error():
    ids = plain_ids("hello you there")
    assert len(token_blocks(of_texts(["hello you there"]), tokenizer(), len(ids))) == 1
    assert len(token_blocks(of_texts(["hello you there"]), tokenizer(), len(ids) + 1, start=2)) == 1
    for start, length in ((None, len(ids) + 1), (2, len(ids) + 2)):
        with pytest.raises(DataError, match=f"has {len(ids)} tokens, fewer than one block of --max_length {length}"):
            token_blocks(of_texts(["hello you there"]), tokenizer(), length, start=start)


def test_no_text_at_all_is_an_error():
    with pytest.raises(DataError, match="has 0 tokens"):
        token_blocks(of_texts(["", ""]), tokenizer(), 8)


def test_special_tokens_come_from_nowhere_but_the_arguments():
    """A text that spells one is the only other source of it."""
    found = np.array(token_blocks(documents(), tokenizer(), 32)["input_ids"])
    assert not np.isin(found, tokenizer().all_special_ids).any()


# ---- segments ----


def encoded_parts(text, longest, which=None):
    return [ids[:longest] for ids in (plain_ids(part, which) for part in parts(text)) if ids]


def joined_parts(text, longest):
    """As `encoded_parts`, with white space between parts."""
    found = parts(text)
    return [plain_ids(part if n == 0 else f" {part}")[:longest] for n, part in enumerate(found)]


def segments_of(pairs):
    """The segments of each document, put together again from its pairs."""
    found = {}
    for row in pairs:
        segments = found.setdefault(row["document"], [row["first"]])
        assert segments[-1] == row["first"], "the second of a pair is the first of the next"
        segments.append(row["second"])
    return found


@pytest.mark.parametrize("longest", [3, 10, 1000])
def test_one_part_a_segment(longest):
    rows = documents()
    expected = [
        {"first": one, "second": other, "document": number}
        for number, text in enumerate(rows["text"])
        for one, other in pairwise(encoded_parts(text, longest))
    ]
    assert segment_pairs(rows, tokenizer(), longest, whole=False).to_list() == expected


@pytest.mark.parametrize("longest", [7, 30, 61])
def test_whole_parts_as_many_as_fit(longest):
    rows = documents()
    found = segments_of(segment_pairs(rows, tokenizer(), longest, whole=True))
    for number, text in enumerate(rows["text"]):
        pieces = joined_parts(text, longest)
        if number not in found:
            assert sum(map(len, pieces)) <= longest, "one segment is no pair"
            continue
        rest = list(pieces)
        for segment in found[number]:
            taken = []
            while rest and len(taken) < len(segment):
                taken += rest.pop(0)
            assert taken == segment, "a segment is whole parts"
            assert 0 < len(segment) <= longest
            assert not rest or len(segment) + len(rest[0]) > longest, "another part would have fitted"
        assert not rest, "every part is in a segment"
    assert len(found) > 20


def test_documents_are_not_mixed_and_their_numbers_are_those_of_the_rows_given():
    rows = of_texts(["a\nb", "alone", "", "c\nd\ne"])
    ids = {name: plain_ids(name) for name in "abcde"}
    expected = [("a", "b", 0), ("c", "d", 3), ("d", "e", 3)]
    found = segment_pairs(rows, tokenizer(), 9, whole=False).to_list()
    assert found == [{"first": ids[a], "second": ids[b], "document": n} for a, b, n in expected]
    chosen = segment_pairs(rows.select([3, 0]), tokenizer(), 9, whole=False)
    assert chosen["document"] == [0, 0, 1]


def test_a_part_without_tokens_is_no_segment():
    which = tokenizer("wordpiece")  # whose normalizer takes control characters out
    assert plain_ids("\u200b", which) == []
    [pair] = segment_pairs(of_texts(["yes\n\u200b\nno"]), which, 9, whole=False).to_list()
    assert (pair["first"], pair["second"]) == (plain_ids("yes", which), plain_ids("no", which))


@pytest.mark.parametrize("rows", [["one line", "another"], ["", " \n "]])
@pytest.mark.parametrize("whole", [False, True])
def test_no_neighbours_at_all_is_an_error(rows, whole):
    with pytest.raises(DataError, match="two neighbouring segments"):
        segment_pairs(of_texts(rows), tokenizer(), 50, whole)


def test_processes_change_nothing():
    rows = documents().select(range(7))
    for make in (
        lambda n: token_blocks(rows, tokenizer(), 16, 2, 3, num_proc=n),
        lambda n: segment_pairs(rows, tokenizer(), 20, whole=True, num_proc=n),
    ):
        assert make(2).to_list() == make(None).to_list()


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_joined_parts_keep_their_words_apart(algorithm):
    which = tokenizer(algorithm)
    pairs = segment_pairs(of_texts(["how are you\nfine\n" + "word " * 30]), which, 20, whole=True)
    assert which.decode(pairs[0]["first"]).split() == ["how", "are", "you", "fine"]


@pytest.mark.parametrize("mode", ["split", "keep_start"])
@pytest.mark.parametrize("numbered", [False, True])
def test_whole_documents_are_their_tokens_in_pieces(mode, numbered):
    texts = ["", "one", "two words", "many more words than one block of them holds", "a b c d e f g h", "x" * 40] * 3
    columns = {"text": texts} | ({"source_row": list(range(100, 118))} if numbered else {})
    documents, which = Dataset.from_dict(columns), train_tokenizer(texts, "bpe", 300, "clm")
    pieces, lost, alone = [], 0, 0
    for number, text in enumerate(texts, 100 * numbered):
        ids = [which.bos_token_id, *which(text, add_special_tokens=False)["input_ids"], which.eos_token_id]
        starts = range(0, len(ids), 7) if mode == "split" else [0]
        cut = [ids[start : start + 7] for start in starts]
        cut, short = [piece for piece in cut if piece[1:]], sum(not piece[1:] for piece in cut)
        pieces += [{"input_ids": piece, "labels": [-100, *piece[1:]], "rows": [number]} for piece in cut]
        alone += short
        lost += 0 if mode == "split" else max(len(ids) - 7, 0)
    found, report = encode_dataset(documents, "text", which, 7, mode, max_labels_lost=1)
    assert found.to_list() == pieces
    tokens = sum(len(piece["input_ids"]) for piece in pieces)
    assert report == EncodingReport(len(texts), len(pieces), tokens, tokens - len(pieces), lost, lost, alone)


@pytest.mark.parametrize(
    ("texts", "options", "wrong"),
    [
        (
            ["one two three four five"],
            {"truncation_mode": "error"},
            "mine, row 0: .* tokens, longer than --max_length 4",
        ),
        (
            ["one two three four five"],
            {"truncation_mode": "keep_start"},
            "mine: cutting rows .* would lose .*use --trunc",
        ),
    ],
)
def test_documents_that_are_refused(texts, options, wrong):
    documents = Dataset.from_dict({"text": texts})
    tokenizer = train_tokenizer(["one two three four five"], "bpe", 300, "clm")
    with pytest.raises(DataError, match=wrong):
        encode_dataset(documents, "text", tokenizer, 4, name="mine", **options)


def test_no_documents_are_refused():
    tokenizer = train_tokenizer(["one two three four five"], "bpe", 300, "clm")
    with pytest.raises(DataError, match="mine: no token within --max_length is supervised"):
        encode_dataset(Dataset.from_dict({"text": []}), "text", tokenizer, 4, name="mine")
