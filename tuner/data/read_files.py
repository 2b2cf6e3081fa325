"""Rows of JSON, CSV, text and Parquet files, as they are written, and the file and line of what is wrong.

Readers that guess types make dates of texts, numbers of `007` and nothing of `None`. Here a string of JSON is a string,
every field of a CSV is one (an empty field is missing, as null is), and columns may first appear anywhere in a file.
Rows are read one at a time, but for a `.json` file that is one list. On disk their values are JSON, for which a column
of mixed types is one like any other; `datasets` may read the 16th digit of a fraction differently.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Json
from datasets.table import CastError
from huggingface_hub import HfFileSystem
from pyarrow import parquet

from tuner.data.cache_key import cache_key
from tuner.data.json_text import read_json
from tuner.data.local_files import COMPRESSIONS, file_format
from tuner.errors import DataError, one_line

Row = dict[str, Any]
# How the path of a file begins that stays on the Hub.
HUB = "hf:/"
BUFFER, GAVE_NO_MORE = 2**20, "the Hub gave no more"
# Rows that are written at once.
CHUNK = 1000


def load_files(files: list[Path], name: str) -> Dataset:
    """The rows of files of one format, in their order, on disk in the cache of `datasets`.

    A file that cannot be read or has no rows is a DataError.
    """
    if file_format(files[0]) == "parquet":
        return _load_parquet(files, name)
    key = [(str(file.resolve()), (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
    digest = blake2b(f"{key} {cache_key(__file__)}".encode(), digest_size=16).hexdigest()
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "tuner_rows" / f"{digest}.arrow"
    if not cached.is_file():
        names = dict.fromkeys(name for file in files for row in read_rows(file) for name in row)
        schema = Features(dict.fromkeys(names, Json())).arrow_schema
        rows = (row for file in files for row in read_rows(file))
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            unfinished = Path(folder) / cached.name
            with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                while chunk := list(islice(rows, CHUNK)):
                    texts = ([json.dumps(row.get(name), ensure_ascii=False) for row in chunk] for name in names)
                    arrays = [pa.ExtensionArray.from_storage(pa.json_(), pa.array(column)) for column in texts]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
            os.replace(unfinished, cached)
    return Dataset.from_file(str(cached))


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file, one at a time; a DataError for one that cannot be read or has no rows."""
    readers = {"json": _json_rows, "csv": _csv_rows, "tsv": _tsv_rows, "text": _text_rows, "parquet": _parquet_rows}
    empty = True
    for row in readers[str(file_format(file))](file):
        empty = False
        yield row
    if empty:
        raise DataError(f"{file} is empty.")


def _load_parquet(files: list[Path], name: str, streaming: bool = False) -> Any:
    """Rows of Parquet files, of which some may lack a column, or have nothing but nulls in it."""
    try:
        known = [(file, parquet.read_metadata(file), parquet.read_schema(file)) for file in files]
        filled = [(file, schema) for file, about, schema in known if about.num_rows]
        if not filled:
            raise DataError(f"{name} is empty.")
        files, schemas = [file for file, _ in filled], [schema for _, schema in filled]
        features = None
        if any(not schema.equals(schemas[0]) for schema in schemas):
            features = Features()
            for schema in schemas:  # the first that has a column says of what type, unless it has nothing there
                for column, feature in Features.from_arrow_schema(schema).items():
                    if column not in features or "'null'" in repr(features[column]):
                        features[column] = feature
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: {one_line(error)}") from error
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its readers log what they raise
    try:
        paths = [glob.escape(str(file)) for file in files]  # `data_files` are patterns
        how = {"split": "train", "streaming": streaming, "features": features}
        return datasets.load_dataset("parquet", data_files=paths, **how)
    except Exception as error:  # `datasets` wraps every reader's own exception type
        cause = error.__cause__ or error
        if isinstance(cause, CastError):
            raise DataError(f"{name}: its rows must all have the same columns, but {cause.details()}.") from error
        raise DataError(f"{name}: {one_line(cause)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        yield from _load_parquet([file], str(file), streaming=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: {one_line(error)}") from error


def _opened(file: Path) -> BinaryIO:
    """A file's bytes, without its compression; the Hub's are not fetched before."""
    suffix, remote = file.suffix.lower(), str(file).startswith(HUB)
    # Its own lines are read with a search of megabytes each.
    where: Any = io.BufferedReader(HfFileSystem().open(str(file).removeprefix(HUB), "rb"), BUFFER) if remote else file
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(where if remote else str(file), compression="zstd")))
    readers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    if suffix not in readers:
        return cast(BinaryIO, where if remote else file.open("rb"))
    return cast(BinaryIO, readers[suffix](where, "rb"))


def _lines(file: Path) -> Iterator[str]:
    """Lines with their ends. They end at a line feed alone: strings may hold what else Unicode calls a line end."""
    number = 0
    try:
        with _opened(file) as stream:
            for number, line in enumerate(stream, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if str(file).startswith(HUB):
            raise DataError(f"{file}, after line {number}: {GAVE_NO_MORE}: {one_line(error)}") from error
        if file.suffix.lower() in COMPRESSIONS:
            raise DataError(
                f"{file}, after line {number}: damaged, or not {file.suffix}: {one_line(error)}."
            ) from error
        raise DataError(f"{file}: cannot be read: {getattr(error, 'strerror', error)}.") from error
    except UnicodeDecodeError as error:
        where = f"{file}, line {number}"
        raise DataError(f"{where}: not UTF-8 (byte {error.start + 1} of the line). Convert it first.") from error
    except Exception as error:
        if not str(file).startswith(HUB):
            raise
        # The errors of the Hub's client are of many types.
        raise DataError(f"{file}, after line {number}: {GAVE_NO_MORE}: {one_line(error)}") from error


def _text_rows(file: Path) -> Iterator[Row]:
    return ({"text": line.rstrip("\r\n")} for line in _lines(file) if line.strip())


def _tsv_rows(file: Path) -> Iterator[Row]:
    return _csv_rows(file, "\t")


def _csv_rows(file: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # else a text of more than 128 KiB is refused
    reader = csv.reader(_lines(file), strict=True, delimiter=delimiter)
    rows = (fields for fields in reader if len(fields) > 1 or any(map(str.strip, fields)))
    count = 0
    try:
        header = next(rows, [])
        for name in header:
            if header.count(name) > 1:
                raise DataError(f"{file}: the column {name!r} is there twice.")
        for count, row in enumerate(rows, 1):  # noqa: B007 (for what follows)
            if len(row) != len(header):
                raise DataError(f"{file}, line {reader.line_num}: {len(row)} fields, but the header has {len(header)}.")
            yield {name: field or None for name, field in zip(header, row, strict=True)}
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not CSV: {one_line(error)}.") from error
    if header and not count:
        raise DataError(f"{file} has a header and no rows.")


def _json_rows(file: Path) -> Iterator[Row]:
    lines = enumerate(_lines(file), 1)
    for number, line in lines:
        if ".json" in (suffix.lower() for suffix in file.suffixes[-2:]) and line.lstrip().startswith("["):
            whole = line + "".join(rest for _, rest in lines)
            for element, row in enumerate(_parse_json(whole, file, number)):
                yield _checked(row, f"{file}, element {element}")
        elif line.strip():
            yield _checked(_parse_json(line.rstrip("\r\n"), file, number), f"{file}, line {number}")


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be an object, not {type(row).__name__}.")
    if not row:
        raise DataError(f"{where}: the object is empty.")
    return row


def _parse_json(text: str, file: Path, line: int) -> Any:
    try:
        return read_json(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {line + error.lineno - 1}, column {error.colno}: not JSON: {error.msg}. "
            "Expected one object a line, or in a .json file a list of objects."
        ) from error
    except (ValueError, RecursionError) as error:  # a key twice, half a character, a nesting beyond Python's limits
        raise DataError(f"{file}, line {line}: {one_line(error)}.") from error
