"""Preference rows: every shape becomes the canonical one, and is encoded as TRL's DPO trainer encodes it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tests.text import samples
from tests.text.samples import talk
from tuner.data.encode import encode_dataset
from tuner.data.schema import canonicalize
from tuner.errors import DataError

PROMPT, GOOD, BAD = talk("q"), [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]
PAIR = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
KINDS = ("preference",)


GIVEN = ("source_row", "tools", "chat_template_kwargs")


def canonical(row, kinds=KINDS):
    kind, rows, unused = canonicalize(Dataset.from_list([row]), "rows.jsonl", kinds)
    assert rows[0]["tools"] is None and rows[0]["chat_template_kwargs"] is None
    return kind, {key: value for key, value in rows[0].items() if key not in GIVEN}, unused


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, PAIR),
        ({"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}, PAIR),
        ({"prompt": "q", "chosen": GOOD, "rejected": BAD}, PAIR),
        ({"prompt": PROMPT, "chosen": "good", "rejected": "bad"}, PAIR),
        ({"chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, PAIR),
        ({"prompt": "q", "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, PAIR),
        ({"prompt": PROMPT, "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, PAIR),
        ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}, PAIR),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            {
                "prompt": talk("The sky is"),
                "chosen": [{"role": "assistant", "content": " blue."}],
                "rejected": [{"role": "assistant", "content": " green."}],
            },
        ),
        (
            {"chosen": talk("q", "a", "q2") + GOOD, "rejected": talk("q", "a", "q2") + BAD},
            {"prompt": talk("q", "a", "q2"), "chosen": GOOD, "rejected": BAD},
        ),
        ({"chosen": PROMPT + GOOD, "rejected": PROMPT + GOOD}, {"prompt": PROMPT, "chosen": GOOD, "rejected": GOOD}),
    ],
)
def test_every_shape_of_preference(row, expected):
    assert canonical(row) == ("preference", expected, {})


def test_ultrafeedback():
    row = {"prompt": "q", "prompt_id": "x", "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD, "score_chosen": 8.5}
    row |= {"messages": PROMPT + GOOD, "score_rejected": 3.0}
    kind, found, unused = canonical(row)
    assert (kind, found) == ("preference", PAIR)
    assert set(unused) == {f"column {c!r}" for c in ("prompt_id", "messages", "score_chosen", "score_rejected")}
    assert canonical(row, ("messages", "text"))[:2] == ("messages", {"messages": PROMPT + GOOD})


@pytest.mark.parametrize("label", [True, "true", "True", 1, "1"])
def test_unpaired(label):
    kind, found, _ = canonical({"prompt": "q", "completion": "good", "label": label}, ("unpaired",))
    assert (kind, found) == ("unpaired", {"prompt": PROMPT, "completion": GOOD, "label": True})
    lists = {"prompt": PROMPT, "completion": BAD, "label": False}
    assert canonical(lists, ("unpaired",))[:2] == ("unpaired", lists)


@pytest.mark.parametrize(
    ("row", "kinds", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, ("messages", "text"), "its rows are pairs of answers"),
        (PAIR, ("messages", "text"), "columns prompt, chosen, rejected.*but conversations or texts are needed"),
        ({"messages": talk("q", "a")}, KINDS, "its rows are conversations .columns messages., but pairs of answers"),
        ({"prompt": "q", "completion": "a", "label": True}, ("messages",), "its rows are judged answers"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, ("unpaired",), "row 0: column 'label' must be true or"),
        ({"chosen": talk("a", "b"), "rejected": talk("c", "d")}, KINDS, "do not begin alike"),
        ({"prompt": "z", "chosen": talk("a", "b"), "rejected": talk("a", "d")}, KINDS, "do not repeat column 'prompt'"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, KINDS, "row 0: column 'rejected' must be a list"),
    ],
)
def test_other_rows_are_refused(row, kinds, message):
    with pytest.raises(DataError, match=f"(?s)^rows.jsonl.*{message}"):
        canonical(row, kinds)


def pairs(count=40):
    """Real conversations; the rejected answer is another conversation's."""
    found = [c[: 2 + 2 * (i % 2)] for i, c in enumerate(samples.conversations()) if len(c) > 4][: count + 1]
    return [{"prompt": one[:-1], "chosen": one[-1:], "rejected": other[-1:]} for one, other in pairwise(found)]


def test_it_is_what_trl_makes_of_them():
    """Prompts and answers are TRL's. Its answers go on to the line end that ChatML has after the end token: there we
    stop, for a model that has ended its turn is asked for no more."""
    tokenizer, rows = samples.smollm2(), pairs()
    kind, canonical_rows, _ = canonicalize(Dataset.from_list(rows), "rows", KINDS)
    ours, report = encode_dataset(canonical_rows, kind, tokenizer, 10**6)
    config = DPOConfig("x", max_length=None, bf16=False, use_cpu=True)
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer._tokenizer = tokenizer
    theirs = trainer._prepare_dataset(Dataset.from_list(rows), tokenizer, config, "train")
    newline = tokenizer("\n")["input_ids"]
    for one, other in zip(ours, theirs, strict=True):
        for answer in ("chosen", "rejected"):
            ids, labels = one[f"{answer}_input_ids"], one[f"{answer}_labels"]
            prompt = len(other["prompt_ids"])
            assert ids[:prompt] == other["prompt_ids"] and ids[prompt:] + newline == other[f"{answer}_ids"]
            assert labels == [-100] * prompt + ids[prompt:]
    assert (report.rows, report.sequences, report.unlabelled, report.identical) == (40, 40, 0, 0)
    assert report.supervised == sum(len(t["chosen_ids"]) + len(t["rejected_ids"]) - 2 for t in theirs)


def test_what_does_not_fit_is_cut_left_out_and_counted():
    tokenizer = samples.small()
    rows = [PAIR, {**PAIR, "prompt": talk("word " * 60)}, {**PAIR, "rejected": talk("", "long " * 60)[1:]}]
    rows += [{**PAIR, "rejected": GOOD}]
    kind, canonical_rows, _ = canonicalize(Dataset.from_list(rows), "rows", KINDS)
    encoded, report = encode_dataset(canonical_rows, kind, tokenizer, 40, max_labels_lost=1.0)
    assert encoded["rows"][:] == [[0], [2], [3]]
    assert (report.rows, report.sequences, report.unlabelled, report.identical) == (4, 3, 1, 1)
    assert len(encoded[1]["rejected_input_ids"]) == 40
    assert encoded[0]["chosen_labels"][-1] == tokenizer.eos_token_id
    assert report.tokens == sum(len(row[f"{a}_input_ids"]) for row in encoded for a in ("chosen", "rejected"))
    with pytest.raises(DataError, match="--max_labels_lost allows 5%"):
        encode_dataset(canonical_rows, kind, tokenizer, 40)
    with pytest.raises(DataError, match="nothing to learn"):
        encode_dataset(canonical_rows.select([1]), kind, tokenizer, 40)


def test_a_sequence_that_is_too_long_is_refused_where_asked():
    rows = canonicalize(Dataset.from_list([PAIR, {**PAIR, "rejected": talk("", "long " * 60)[1:]}]), "rows", KINDS)[1]
    with pytest.raises(DataError, match=r"^rows, row 1: \d+ tokens, longer than --max_length 40 "):
        encode_dataset(rows, "preference", samples.small(), 40, "error", name="rows")
