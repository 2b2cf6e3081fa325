"""Sources: every kind of file gives its rows, and the rows set aside are always the same ones."""

import csv
import json
import pydoc_data.topics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.text import samples
from tuner.data.sources import load_splits, split_rows
from tuner.errors import DataError

TEXTS = ["alpha", "béta 😀", "with, a comma", 'with "quotes"', "  blanks around  ", "한국어", "1.0", "x" * 3000]


def jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")


def json_array(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps([{"text": t} for t in texts], indent=2, ensure_ascii=False), encoding="utf-8")


def comma_separated(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([t] for t in texts)])


def parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path)


def plain(path: Path, texts: list[str]) -> None:
    path.write_text("\n".join(texts), encoding="utf-8")


KINDS: dict[str, Callable[[Path, list[str]], None]] = {
    "rows.jsonl": jsonl,
    "rows.ndjson": jsonl,
    "lines.json": jsonl,
    "array.json": json_array,
    "rows.csv": comma_separated,
    "rows.parquet": parquet,
    "rows.txt": plain,
    "ROWS.JSONL": jsonl,
}
every_kind = pytest.mark.parametrize(("file", "write"), KINDS.items(), ids=list(KINDS))


def all_texts(source: Path) -> list[str]:
    """Both splits, in the order of the source."""
    train, held_out = load_splits(str(source))
    rows = [*train, *held_out]
    assert sorted(row["source_row"] for row in rows) == list(range(len(rows)))
    return [row["text"] for row in sorted(rows, key=lambda row: row["source_row"])]


@every_kind
def test_every_kind_of_file(tmp_path, file, write):
    write(tmp_path / file, TEXTS)
    assert all_texts(tmp_path / file) == TEXTS


@every_kind
def test_folder_of_files(tmp_path, file, write):
    """In the order of their names, those of folders inside it too; files of no known kind are passed over."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    write(folder / f"b{file}", TEXTS[:3])
    write(folder / f"a{file}", TEXTS[3:6])
    write(folder / "sub" / file, TEXTS[6:])
    (folder / "README.md").write_text("no rows")
    assert all_texts(folder) == TEXTS[3:6] + TEXTS[:3] + TEXTS[6:]


def test_folder_of_splits(tmp_path):
    """Files called after the splits are those; without a training one, all files together are."""
    jsonl(tmp_path / "train.jsonl", ["a", "b", "c"])
    jsonl(tmp_path / "test.jsonl", ["d"])
    jsonl(tmp_path / "other.jsonl", ["e", "f"])
    train, held_out = load_splits(str(tmp_path))
    assert (train["text"][:], held_out["text"][:]) == (["a", "b", "c"], ["d"])
    train, held_out = load_splits(str(tmp_path), test_split="other")
    assert (train["text"][:], held_out["text"][:]) == (["a", "b", "c"], ["e", "f"])
    train, held_out = load_splits(str(tmp_path), train_split="none", test_split="neither")
    assert sorted(train["text"][:] + held_out["text"][:]) == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize("file", [k for k in KINDS if "parquet" not in k])
def test_byte_order_mark_is_no_text(tmp_path, file):
    KINDS[file](tmp_path / file, TEXTS)
    (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + (tmp_path / file).read_bytes())
    assert all_texts(tmp_path / file) == TEXTS


@pytest.mark.parametrize("file", ["rows.jsonl", "lines.json", "rows.txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_no_rows(tmp_path, file, end):
    KINDS[file](tmp_path / file, ["one", "two", "three"])
    lines = (tmp_path / file).read_text(encoding="utf-8").splitlines()
    content = end.join(["", "  ", lines[0], "", lines[1], "\t", lines[2], "", ""])
    (tmp_path / file).write_bytes(content.encode())
    assert all_texts(tmp_path / file) == ["one", "two", "three"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("file", ["rows.jsonl", "array.json"])
def test_unicode_line_ends_inside_a_string(tmp_path, file, character):
    """JSON forbids control characters in strings; all else that Unicode calls a line end is text."""
    text = json.dumps({"text": f"before{character}after"}, ensure_ascii=character < " ")
    (tmp_path / file).write_text(f"[{text},{text}]" if file == "array.json" else f"{text}\n{text}\n", encoding="utf-8")
    assert all_texts(tmp_path / file) == [f"before{character}after"] * 2


def test_a_carriage_return_ends_no_row(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text":\r"one"}\n{"text": "two"}\r\n')
    assert all_texts(tmp_path / "rows.jsonl") == ["one", "two"]


def test_home_and_relative_paths(tmp_path, monkeypatch):
    jsonl(tmp_path / "rows.jsonl", TEXTS)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert all_texts(Path("~/rows.jsonl")) == all_texts(Path("rows.jsonl")) == TEXTS


def test_a_column_called_source_row_is_not_ours(tmp_path):
    rows = [json.dumps({"text": text, "source_row": "theirs"}) for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    assert all_texts(tmp_path / "rows.jsonl") == TEXTS


def numbers(rows):
    return rows["source_row"][:]


def numbered(tmp_path: Path, count: int) -> str:
    jsonl(tmp_path / "rows.jsonl", [f"row {i}" for i in range(count)])
    return str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("size", "expected"), [(0.05, 5), (0.101, 10), (0.5, 50), (0.9, 50), (0, 1), (0.001, 1), (1, 1), (7, 7), (1000, 50)]
)
def test_share_or_number_of_validation_rows(tmp_path, size, expected):
    train, held_out = load_splits(numbered(tmp_path, 100), test_split_size=size)
    assert (len(train), len(held_out)) == (100 - expected, expected)
    assert sorted(numbers(train) + numbers(held_out)) == list(range(100))
    assert all(row["text"] == f"row {row['source_row']}" for row in [*train, *held_out])


def test_validation_rows_are_always_the_same(tmp_path):
    source = numbered(tmp_path, 100)
    one, other = load_splits(source, test_split_size=10), load_splits(source, test_split_size=10)
    assert numbers(one[1]) == numbers(other[1])
    assert numbers(one[0]) == numbers(other[0])
    # Pinned: results of different machines and versions are compared on them.
    assert sorted(numbers(one[1])) == PINNED
    assert numbers(one[1]) != sorted(numbers(one[1])), "rows are drawn, not taken from an end"


PINNED = [5, 16, 20, 36, 52, 72, 82, 90, 93, 94]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_to_set_some_aside(count):
    rows = samples.chitchat().select(range(count)).remove_columns("source_row")
    with pytest.raises(DataError, match=rf"^my rows has {count} row; at least 2 are needed"):
        split_rows(rows, 0.1, "my rows")


def test_split_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no such built-in.*Did you mean builtin:chitchat\?"):
        load_splits("builtin:chitchats")
    train, held_out = load_splits(numbered(tmp_path, 10), train_split="train", test_split="train", test_split_size=3)
    assert (len(train), len(held_out)) == (7, 3), "a split is not validated on itself"


def roles_of(messages: list[dict[str, str]]) -> list[str]:
    assert all(turn["content"].strip() for turn in messages)
    return [turn["role"] for turn in messages]


def test_chitchat():
    """Real conversations: two people who take turns, the one who begins is the user."""
    train, held_out = load_splits("builtin:chitchat")
    assert len(train) + len(held_out) > 3500
    assert len(held_out) == round(0.05 * (len(train) + len(held_out)))
    for messages in [*train["messages"], *held_out["messages"]]:
        roles = roles_of(messages)
        assert roles[0] == "user"
        assert all(one != other for one, other in pairwise(roles))
    everything = [json.dumps(m) for m in [*train["messages"], *held_out["messages"]]]
    assert len(set(everything)) > 0.99 * len(everything)


def test_chatterbot():
    train, held_out = load_splits("builtin:chatterbot")
    assert len(train) + len(held_out) > 500
    for messages in [*train["messages"], *held_out["messages"]]:
        roles = roles_of(messages)
        assert roles[:2] == ["user", "assistant"]
        assert all(one != other for one, other in pairwise(roles))


def test_builtin_texts():
    """Facts of the packages: articles of five classes, some not UTF-8; and one text a topic."""
    train, held_out = load_splits("builtin:bbc-news")
    assert len(train) + len(held_out) == 2225
    assert set(train["label"]) == {"business", "entertainment", "politics", "sports", "tech"}
    assert any("£" in text for text in train["text"]) and not any("\ufffd" in text for text in train["text"])
    train, held_out = load_splits("builtin:python-docs")
    assert len(train) + len(held_out) == len(pydoc_data.topics.topics)
    assert any(text.startswith("Operator precedence") for text in [*train["text"], *held_out["text"]])
