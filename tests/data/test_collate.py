"""Batches: padded on the right, where nothing is learnt; packed rows carry positions."""

import pytest
import torch

from tuner.data.collate import alike, collate_causal, pad

PAD = 99


def test_batches_of_like_length():
    """The longest first; on a CPU none is padded to more than a quarter above its length."""
    lengths, cpu, elsewhere = [10, 100, 9, 8, 90, 11, 79], torch.device("cpu"), torch.device("meta")
    assert list(alike(lengths, 2, cpu)) == [[1, 4], [6], [5, 0], [2, 3]]
    assert list(alike(lengths, 3, cpu, 2.0)) == [[1, 4, 6], [5, 0, 2], [3]]
    assert list(alike(lengths, 3, elsewhere)) == [[1, 4, 6], [5, 0, 2], [3]]
    assert list(alike(lengths, 9, elsewhere)) == [[1, 4, 6, 5, 0, 2, 3]] and list(alike([], 2, cpu)) == []


def collator(pad_token_id, multiple=64, padding_free=False):
    return lambda features: collate_causal(features, pad_token_id, padding_free, multiple)


def feature(length, first=0, **extra):
    ids = list(range(first, first + length))
    return {"input_ids": ids, "labels": [-100, *ids[1:]], "rows": [first], **extra}


def packed(*lengths):
    positions = [p for length in lengths for p in range(length)]
    return feature(sum(lengths), position_ids=positions) | {"rows": list(range(len(lengths)))}


@pytest.mark.parametrize(
    ("lengths", "multiple", "time"), [((3, 5), 8, 8), ((8, 1), 8, 8), ((9, 1), 8, 16), ((9,), 1, 9)]
)
def test_length_is_rounded_up(lengths, multiple, time):
    batch = collator(PAD, multiple)([feature(n) for n in lengths])
    for name in ("input_ids", "labels"):
        assert batch[name].shape == (len(lengths), time)
        assert batch[name].dtype == torch.long


def test_padding_is_on_the_right_and_not_learnt():
    features = [feature(3), feature(6, 10), feature(1, 30)]
    batch = collator(PAD, 4)(features)
    for i, row in enumerate(features):
        length = len(row["input_ids"])
        assert batch["input_ids"][i].tolist() == row["input_ids"] + [PAD] * (8 - length)
        assert batch["labels"][i].tolist() == row["labels"] + [-100] * (8 - length)
    assert batch["tokens"].tolist() == [3, 6, 1]
    assert batch["rows"].tolist() == [[0], [10], [30]]
    assert "position_ids" not in batch
    assert "attention_mask" not in batch, "nothing real sees padding on the right"


def test_a_padding_token_in_the_text_is_still_learnt():
    """Padding is told by length, never by the token (TRL issue 6357)."""
    row = {"input_ids": [1, PAD, PAD], "labels": [-100, PAD, PAD], "rows": [0]}
    batch = collator(PAD, 4)([row])
    assert batch["labels"].tolist() == [[-100, PAD, PAD, -100]]
    assert batch["tokens"].tolist() == [3]


def test_packed_rows_carry_positions_that_start_again():
    batch = collator(PAD, 8)([packed(3, 4), packed(2), packed(8)])
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 0, 1, 2, 3, 0],  # padding is one more document
        [0, 1, 0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ]
    assert batch["rows"].tolist() == [[0, 1], [0, -1], [0, -1]]
    assert batch["tokens"].tolist() == [7, 2, 8]


def test_features_are_not_changed():
    features = [feature(3), feature(5)]
    before = [{k: list(v) for k, v in f.items()} for f in features]
    collator(PAD)(features)
    assert features == before


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_lists_and_tensors_are_the_same(kind):
    rows = [packed(3, 4), packed(5)]
    expected = collator(PAD)(rows)
    batch = collator(PAD)([{k: kind(v) for k, v in row.items()} for row in rows])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[k], expected[k]) for k in batch)


def test_joined_rows_are_one_row_without_padding_between():
    batch = collator(PAD, 8, padding_free=True)([feature(3), feature(2, 10), feature(4, 20)])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 10, 11, 20, 21, 22, 23] + [PAD] * 7]
    assert batch["labels"].tolist() == [[-100, 1, 2, -100, 11, -100, 21, 22, 23] + [-100] * 7]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, *range(7)]]
    assert batch["rows"].tolist() == [[0, 10, 20]]
    assert int(batch["tokens"].sum()) == 9


def test_joined_blocks_keep_their_conversations_apart():
    batch = collator(PAD, 1, padding_free=True)([packed(2, 3), packed(1, 2)])
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]
    assert batch["rows"].tolist() == [[0, 1, 0, 1]]


def test_rounding_up_stops_at_the_most():
    assert pad([[1, 2, 3], [4]], PAD, 8, 5).tolist() == [[1, 2, 3, PAD, PAD], [4, PAD, PAD, PAD, PAD]]
    assert pad([[1, 2, 3]], PAD, 8, 2).tolist() == [[1, 2, 3]], "nothing is cut"
