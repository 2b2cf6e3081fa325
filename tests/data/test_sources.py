"""Sources: every kind of file gives its rows, and the rows set aside are always the same ones."""

import csv
import json
import pydoc_data.topics
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.text import samples
from tuner.corpus.reading import open_stream
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


def put(path: Path, *texts: str) -> Path:
    """Rows in a file of whatever format its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[f"rows{path.suffix}"](path, list(texts))
    return path


def split_texts(source: Path, **how) -> tuple[list[str], list[str]]:
    """In memory and as a stream, which must be one."""
    train, held_out = load_splits(str(source), **how)
    splits = how.get("train_split", "train"), how.get("test_split", "test")
    streams = open_stream(str(source), how.get("config"), splits, 0, 1)
    found = [[row["text"] for row in rows or []] for rows in streams]
    assert found[1] or sorted(found[0]) == sorted([*train["text"], *held_out["text"]])
    assert not found[1] or found == [train["text"][:], held_out["text"][:]]
    return train["text"][:], held_out["text"][:]


def test_folder_of_splits(tmp_path):
    """Files called after the splits are those, whatever the splits are called."""
    put(tmp_path / "train.jsonl", "a", "b", "c")
    put(tmp_path / "test.jsonl", "d")
    put(tmp_path / "other.jsonl", "e", "f")
    assert split_texts(tmp_path) == (["a", "b", "c"], ["d"])
    assert split_texts(tmp_path, test_split="other") == (["a", "b", "c"], ["e", "f"])
    assert split_texts(tmp_path, train_split="other") == (["e", "f"], ["d"])
    with pytest.raises(DataError, match=r"no split 'trian' \(--dataset_train_split\); it has test, train\."):
        load_splits(str(tmp_path), train_split="trian")


LAYOUTS = {
    "shards": (
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ),
    "folders": ("train/a.csv", "train/deeper/b.csv", "test/a.csv"),
    "names": ("my_corpus-train_0.jsonl", "my_corpus-train_1.jsonl", "testing.jsonl"),
    "capitals": ("train_0.JSONL".lower(), "train_1.jsonl", "eval.jsonl"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("folder", ["folder", "run[1]", "train", ".hidden"])
def test_a_folder_as_the_hub_lays_it_out(tmp_path, layout, folder):
    one, other, test = LAYOUTS[layout]
    put(tmp_path / folder / one, "a")
    put(tmp_path / folder / other, "b")
    put(tmp_path / folder / test, "c")
    (tmp_path / folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert split_texts(tmp_path / folder) == (["a", "b"], ["c"])


def test_validation_rows_where_there_is_no_test_split(tmp_path, capsys):
    put(tmp_path / "train.jsonl", "a", "b")
    put(tmp_path / "valid.jsonl", "c")
    assert split_texts(tmp_path) == (["a", "b"], ["c"])
    assert "has no split 'test': validating on its split 'validation'" in capsys.readouterr().err
    put(tmp_path / "test.jsonl", "d")
    assert split_texts(tmp_path) == (["a", "b"], ["d"])
    said = capsys.readouterr().err
    assert "validating on" not in said and "not read: the splits validation (" in said


def test_configurations_that_a_card_declares(tmp_path):
    for config in ("main", "socratic"):
        put(tmp_path / config / "train-00000-of-00001.parquet", f"{config} train")
        put(tmp_path / config / "test-00000-of-00001.parquet", f"{config} test")
    configs = [
        {"config_name": c, "data_files": [{"split": s, "path": f"{c}/{s}-*"} for s in ("train", "test")]}
        for c in ("main", "socratic")
    ]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert split_texts(tmp_path, config="main") == (["main train"], ["main test"])
    with pytest.raises(
        DataError, match=r"has the configurations main, socratic; --dataset_config must be one of them\."
    ):
        load_splits(str(tmp_path))


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/a.jsonl", ".cache/x/a.jsonl", "__MACOSX/a.jsonl", "._a.jsonl", "~$a.jsonl"]
)
def test_hidden_files_are_no_rows(tmp_path, hidden):
    put(tmp_path / "a.jsonl", "a", "b")
    put(tmp_path / hidden, "a", "hidden")
    assert all_texts(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt", ".parquet"])
def test_a_path_is_no_pattern(tmp_path, suffix):
    put(tmp_path / f"run[1]{suffix}", "mine", "too")
    put(tmp_path / f"run1{suffix}", "not", "mine")
    assert all_texts(tmp_path / f"run[1]{suffix}") == ["mine", "too"]
    assert [
        row["text"] for row in open_stream(str(tmp_path / f"run[1]{suffix}"), None, ("train", "test"), 0, 1)[0]
    ] == [
        "mine",
        "too",
    ]


def test_a_file_that_changes_is_read_again(tmp_path):
    assert all_texts(put(tmp_path / "a.jsonl", "a", "b")) == ["a", "b"]
    assert all_texts(put(tmp_path / "a.jsonl", "a", "c")) == ["a", "c"]


LOOKALIKES = [
    "None",
    "NA",
    "nan",
    "22",
    "007",
    "1e5",
    "true",
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "[1]",
    "{}",
    "null",
]


@pytest.mark.parametrize("write", [comma_separated, jsonl, json_array, plain, parquet])
@pytest.mark.parametrize("texts", [LOOKALIKES, LOOKALIKES[3:5], LOOKALIKES[6:7], LOOKALIKES[7:8], LOOKALIKES[8:9]])
def test_text_that_looks_like_something_else_stays_text(tmp_path, write, texts):
    name = {
        "comma_separated": "a.csv",
        "jsonl": "a.jsonl",
        "json_array": "a.json",
        "plain": "a.txt",
        "parquet": "a.parquet",
    }
    write(tmp_path / name[write.__name__], texts * 2)
    assert all_texts(tmp_path / name[write.__name__]) == texts * 2


def test_a_long_field_of_a_csv(tmp_path):
    assert all_texts(put(tmp_path / "a.csv", "x" * 300_000, 'line\n"two"')) == ["x" * 300_000, 'line\n"two"']


def test_an_empty_field_of_a_csv_is_missing(tmp_path):
    (tmp_path / "a.csv").write_text("text,note\na,\nb,x\n")
    train, held_out = load_splits(str(tmp_path / "a.csv"))
    assert {row["text"]: row["note"] for row in [*train, *held_out]} == {"a": None, "b": "x"}


def test_a_key_that_comes_late_and_keys_of_many_types(tmp_path):
    """Beyond the first 10 MB, at the top and in a message; integers beyond 64 bits; what Arrow has no type for."""
    rows: list[dict] = [
        {"messages": [{"role": "user", "content": "x" * 1_100_000}], "n": 1, "o": "1"} for _ in range(11)
    ]
    rows += [{"messages": [{"role": "user", "content": "late", "name": "n"}], "n": 2.5, "o": 1, "late": {"a": [1]}}]
    rows += [{"messages": [{"role": "user", "content": [{"type": "text"}]}], "n": None, "o": 2**70}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held_out = load_splits(str(tmp_path / "a.jsonl"))
    read = sorted([*train, *held_out], key=lambda row: row["source_row"])
    assert [row["messages"] for row in read] == [row["messages"] for row in rows]
    assert [row["n"] for row in read] == [row["n"] for row in rows]
    assert [row["o"] for row in read[10:]] == ["1", 1, str(2**70)]
    assert [row["late"] for row in read[10:]] == [None, {"a": [1]}, None]


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


def test_chitchat_punctuation():
    train, held_out = load_splits("builtin:chitchat-punctuation")
    assert len(train) + len(held_out) > 40_000
    targets = [*train["target"], *held_out["target"]]
    assert len(set(targets)) == len(targets) and all(text[0].isupper() and text[-1] in ".!?" for text in targets)
    assert all(len(text) <= 80 and "\n" not in text for text in targets)
    sources = [*train["source"], *held_out["source"]]
    assert all(re.fullmatch("[a-z0-9]+( [a-z0-9]+){3,}", text) for text in sources)
    pairs = zip(sources, targets, strict=True)
    assert all(re.sub("[^a-z0-9]", "", target.lower()) == source.replace(" ", "") for source, target in pairs)


def test_builtin_texts():
    """Facts of the packages: articles of five classes, some not UTF-8; and one text a topic."""
    train, held_out = load_splits("builtin:bbc-news")
    assert len(train) + len(held_out) == 2225
    assert set(train["label"]) == {"business", "entertainment", "politics", "sports", "tech"}
    assert any("£" in text for text in train["text"]) and not any("\ufffd" in text for text in train["text"])
    train, held_out = load_splits("builtin:python-docs")
    assert len(train) + len(held_out) == len(pydoc_data.topics.topics)
    assert any(text.startswith("Operator precedence") for text in [*train["text"], *held_out["text"]])
