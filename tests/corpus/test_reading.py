"""Streams of documents from files: the same texts as in memory, and what is wrong is said where it is."""

from __future__ import annotations

import json

import pytest

from tuner.corpus.reading import open_stream, set_aside
from tuner.errors import DataError

SPLITS = ("train", "test")


def texts(path, buffer_size=1):
    return [row["text"] for row in open_stream(str(path), None, SPLITS, 0, buffer_size)[0]]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_conversations_are_texts(tmp_path):
    turns = [{"role": "user", "content": "how\nare you"}, {"role": "assistant", "content": "fine"}]
    assert texts(lines(tmp_path / "rows.jsonl", *[{"messages": turns}] * 3)) == ["how are you\nfine"] * 3


def test_blank_documents_are_none(tmp_path):
    rows = [{"text": "a"}, {"text": ""}, {"text": " \n"}, {"text": "b"}]
    assert texts(lines(tmp_path / "rows.jsonl", *rows)) == ["a", "b"]
    (tmp_path / "rows.txt").write_text("\ufeffa\n\n  \nb\n", encoding="utf-8")
    assert texts(tmp_path / "rows.txt") == ["a", "b"]


def test_a_folder_is_all_its_files_and_is_shuffled_the_same_again(tmp_path):
    for number in range(3):
        lines(tmp_path / f"{number}.jsonl", *({"text": f"{number} {row}"} for row in range(20)))
    ordered, shuffled = texts(tmp_path), texts(tmp_path, 10)
    assert ordered == [f"{number} {row}" for number in range(3) for row in range(20)]
    assert sorted(shuffled) == sorted(ordered) and shuffled != ordered
    assert shuffled == texts(tmp_path, 10)


def test_a_folder_with_two_splits_does_not_train_on_its_test_file(tmp_path):
    lines(tmp_path / "train.jsonl", {"text": "learn"})
    lines(tmp_path / "test.jsonl", {"text": "validate"})
    train, held_out = open_stream(str(tmp_path), None, SPLITS, 0, 100)
    assert [row["text"] for row in train] == ["learn"]
    assert [row["text"] for row in held_out] == ["validate"]


def test_documents_set_aside_are_not_in_the_rest(tmp_path):
    file = lines(tmp_path / "rows.jsonl", *({"text": str(row)} for row in range(30)))
    rest, first = set_aside(open_stream(str(file), None, SPLITS, 0, 10)[0], 4, "rows")
    assert len(first) == 4
    assert sorted([*first["text"], *(row["text"] for row in rest)], key=int) == [str(row) for row in range(30)]
    with pytest.raises(DataError, match="--test_split_size 30 would set all of them aside"):
        set_aside(open_stream(str(file), None, SPLITS, 0, 10)[0], 30, "rows")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"left,right\n1,2\n", "a.csv, row 0: no known shape has the columns left, right"),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', "a.jsonl, row 1: column 'text' must be a string, not null"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2, column 10: not JSON"),
        ("a.txt", b"a\ncaf\xe9\n", "a.txt, line 2: not UTF-8"),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.doc", b"a", "a.doc: unknown extension"),
    ],
)
def test_what_is_wrong_is_said_with_its_file(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        texts(tmp_path / "rows.jsonl")
    (tmp_path / "a.txt").write_text("a\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("text\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match="files of several kinds"):
        texts(tmp_path)
