"""Compressed files, folders of `save_to_disk`, and columns of other names: the same rows as without."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from tests.data.test_sources import KINDS, TEXTS, all_texts
from tests.text.samples import talk
from tuner.corpus.reading import open_stream
from tuner.data.columns import suggestion
from tuner.data.schema import canonicalize
from tuner.data.sources import load_rows, load_splits
from tuner.errors import ArgumentError, DataError


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("file", [name for name in KINDS if "parquet" not in name])
def test_a_compressed_file_has_the_same_rows(tmp_path, file, suffix):
    KINDS[file](tmp_path / file, TEXTS)
    packed = tmp_path / "packed" / f"{file}{suffix}"
    packed.parent.mkdir()
    packed.write_bytes(COMPRESS[suffix]((tmp_path / file).read_bytes()))
    assert sorted(all_texts(packed)) == sorted(all_texts(tmp_path / file))
    assert sorted(all_texts(packed.parent)) == sorted(all_texts(tmp_path / file))
    stream, _ = open_stream(str(packed), None, ("train", "test"), 0, 1)
    assert [row["text"] for row in stream] == [text for text in load_rows(str(tmp_path / file))["text"] if text.strip()]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("data", [b"no archive at all", None])
def test_a_damaged_archive_is_named(tmp_path, suffix, data):
    file = tmp_path / f"rows.jsonl{suffix}"
    lines = "".join(json.dumps({"text": f"{n} {hash(str(n))}"}) + "\n" for n in range(5000)).encode()
    file.write_bytes(data or COMPRESS[suffix](lines)[:-2000])
    with pytest.raises(DataError, match=rf"rows\.jsonl\{suffix}, after line \d+: damaged, or not \{suffix}: "):
        load_splits(str(file))


def test_a_compressed_parquet_file_is_none_of_ours(tmp_path):
    (tmp_path / "rows.parquet.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"unknown extension; expected one of \.jsonl, .*, also with \.gz, \.zst"):
        load_splits(str(tmp_path / "rows.parquet.gz"))


def test_a_folder_of_save_to_disk(tmp_path):
    train, test = ({"text": [f"{split} {n}" for n in range(6)], "source": ["x"] * 6} for split in ("train", "test"))
    Dataset.from_dict(train).save_to_disk(str(tmp_path / "one"))
    both = DatasetDict(train=Dataset.from_dict(train), validation=Dataset.from_dict(test))
    both.save_to_disk(str(tmp_path / "two"))
    assert sorted(all_texts(tmp_path / "one")) == train["text"]
    found, held_out = load_splits(str(tmp_path / "two"))
    assert (found["text"][:], held_out["text"][:]) == (train["text"], test["text"])
    assert load_rows(str(tmp_path / "two"), "validation")["text"][:] == test["text"]
    stream, held = open_stream(str(tmp_path / "two"), None, ("train", "test"), 0, 1)
    assert [row["text"] for row in stream] == train["text"] and [row["text"] for row in held] == test["text"]
    with pytest.raises(DataError, match=r"has no split 'dev' \(--dataset_train_split\); it has train, validation\."):
        load_splits(str(tmp_path / "two"), train_split="dev")
    for file in Path(tmp_path, "one").glob("*.arrow"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="a folder of save_to_disk, but damaged"):
        load_splits(str(tmp_path / "one"))


def write(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_columns_of_other_names(tmp_path):
    file = write(tmp_path, *({"question": f"q{n}", "answer": f"a{n}", "prompt": "x"} for n in range(8)))
    mapping = "question=prompt, answer=completion,prompt=old"
    train, held_out = load_splits(file, test_split_size=2, column_mapping=mapping)
    kind, rows, unused = canonicalize(train, file)
    assert kind == "messages" and unused == {"column 'old'": 1.0} and len(rows) == 6
    assert {turns[0]["content"].replace("q", "a") for turns in rows["messages"]} == {
        turns[1]["content"] for turns in rows["messages"]
    }
    assert held_out.column_names == train.column_names
    stream, _ = open_stream(file, None, ("train", "test"), 0, 1, mapping)
    assert next(iter(stream)) == {"text": "q0\na0"}


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ("question", ArgumentError, r"--column_mapping question: expected name=new_name,\.\.\., each of them once\."),
        ("question=", ArgumentError, "expected name=new_name"),
        ("question=a,answer=a", ArgumentError, "each of them once"),
        (
            "quesion=prompt",
            DataError,
            r"has the columns question, answer, and no 'quesion'\. Did you mean question",
        ),
        ("question=answer", DataError, r"has a column 'answer' too\. Give it another name\."),
    ],
)
def test_a_mapping_that_cannot_be(tmp_path, mapping, error, message):
    file = write(tmp_path, *[{"question": "q", "answer": "a"}] * 4)
    with pytest.raises(error, match=message):
        load_splits(file, column_mapping=mapping)
    with pytest.raises(error, match=message):
        stream, _ = open_stream(file, None, ("train", "test"), 0, 1, mapping)
        list(stream)


@pytest.mark.parametrize(
    ("columns", "shapes", "expected"),
    [
        (["question", "answer"], [("messages",), ("prompt", "completion")], "question=prompt,answer=completion"),
        (["Query", "Response", "id"], [("prompt", "completion")], "Query=prompt,Response=completion"),
        (["dialogue"], [("messages",)], "dialogue=messages"),
        (["Text"], [("prompt", "completion"), ("text",)], "Text=text"),
        (["prompt", "better", "worse"], [("prompt", "chosen", "rejected")], "better=chosen,worse=rejected"),
        (["a", "b"], [("messages",), ("prompt", "completion"), ("text",)], ""),
    ],
)
def test_a_mapping_is_suggested_where_names_are_alike(columns, shapes, expected):
    assert suggestion(dict.fromkeys(columns), shapes) == (expected and f"--column_mapping {expected}")


@pytest.mark.parametrize("header", ['"What, exactly?"', " Question ", "a=b", "the question"])
def test_any_header_of_a_csv_can_be_mapped(tmp_path, header):
    (tmp_path / "rows.csv").write_text(f"{header},answer\nwhy?,so\nhow?,thus\n", encoding="utf-8")
    name = header.strip('"')
    rows = load_rows(str(tmp_path / "rows.csv"))
    assert rows.column_names == [name, "answer"]
    train, held_out = load_splits(
        str(tmp_path / "rows.csv"), column_mapping=json.dumps({name: "prompt", "answer": "completion"})
    )
    assert sorted([*train["prompt"], *held_out["prompt"]]) == ["how?", "why?"]


def test_a_mapping_is_suggested_as_it_can_be_passed():
    told = suggestion(dict.fromkeys([" Question ", "answer"]), [("prompt", "completion")])
    assert told == """--column_mapping '{" Question ": "prompt", "answer": "completion"}'"""


def test_files_and_splits_that_are_not_read_are_named(tmp_path, capsys):
    for name in ("train", "test", "extra", "notes", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    train, held_out = load_splits(str(tmp_path))
    said = capsys.readouterr().err
    assert "in no split" in said and "and not read: extra.jsonl, notes.jsonl.\n" in said
    assert "not read: the splits validation (" in said
    assert train["text"] == ["train"] and held_out["text"] == ["test"]


def test_nothing_is_said_where_all_is_read(tmp_path, capsys):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("# Rows\n", encoding="utf-8")
    load_splits(str(tmp_path))
    assert capsys.readouterr().err == ""


def test_a_stream_names_once_what_it_does_not_use(tmp_path, capsys):
    rows = [{"text": f"document {number}", "url": "here"} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stream, _ = open_stream(str(tmp_path / "rows.jsonl"), None, ("train", "test"), 0, 1)
    assert len(list(stream)) == 5
    assert capsys.readouterr().err.count("rows.jsonl: not used is column 'url'.") == 1


def test_a_stream_does_not_drop_tools(tmp_path):
    row = {"messages": talk("q", "a"), "tools": [{"name": "f"}]}
    stream, _ = open_stream(write(tmp_path, row), None, ("train", "test"), 0, 1)
    with pytest.raises(DataError, match=r"row 0: what may be called is no part of the text of a stream"):
        list(stream)
