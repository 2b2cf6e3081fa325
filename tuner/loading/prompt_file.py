"""A file of prompts, answered into another, batch by batch: what `tuner generate --prompts` does.

Each answer goes at once into a file beside the output, `<output>.part`, whose first line says what of: a run that was
killed goes on with what is missing, and ends with what it would have ended with. The output appears whole, by a rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from hashlib import file_digest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from tuner.data.questions import SYSTEM_COLUMNS, history_of, refuse_templated
from tuner.data.read_files import read_rows
from tuner.data.tools import given_of
from tuner.data.turns import (
    REFUSED_COLUMNS,
    message,
    messages_of,
    passed_over,
    says_something,
    text_of,
)
from tuner.data.written import turns_in
from tuner.errors import CheckpointError, DataError, Interrupted, notice
from tuner.loading.chat_model import ChatModel
from tuner.loading.checkpoints import resolve
from tuner.loading.generation import generate_texts, room

# Columns that hold a prompt, the first that a row has; the column of the answers; what says how tokens are chosen.
COLUMNS = ("prompt", "messages", "text", "source")
ANSWER = "completion"
SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "batch_size", "seed")
WEIGHTS = (".safetensors", ".bin", ".gguf")


def answer_file(model: ChatModel, file: Path, output: Path, name: str, system: str | None, raw: bool, how: Any) -> None:
    """Answer every row of `file` into the JSON lines `output`: a row's own columns and `completion`.

    Args:
        name: what the model was loaded from.
        system, raw: as the flags of `tuner generate`.
        how: what `SAMPLING` names; `generate_texts` explains it.

    Raises:
        DataError: a row without a prompt, or with one that the model cannot read; the file was changed meanwhile.
        CheckpointError: what lies beside the output is of another run, of one that is running, or damaged.
        Interrupted: Ctrl-C; what is answered is kept.
    """
    prompts = read_prompts(model, file, system, raw)
    part = output.with_name(f"{output.name}.part")
    header = {"model": name, "weights": _weights(name), "prompts": _digest(file), "system": system, "raw": raw, **how}
    with part.open("a+b") as side:
        known = _begin(side, part, header)
        try:
            bar = tqdm(total=len(prompts), initial=len(known), unit="prompt", desc=output.name)
            for number, text in generate_texts(model.model, model.tokenizer, prompts, **how, done=known):
                known[number] = _write(side, {"row": number, ANSWER: text.strip()})
                bar.update()
            bar.close()
        except KeyboardInterrupt:
            left = f"{len(known):,} of {len(prompts):,} answers are in {part}: the same command goes on."
            raise Interrupted(f"Stopped. {left}", signal.SIGINT) from None
        if _digest(file) != header["prompts"]:
            raise DataError(f"{file} was changed while it was answered.")
        whole = output.with_name(f"{output.name}.new")
        with whole.open("w", encoding="utf-8") as out:
            for number, row in enumerate(read_rows(file)):
                side.seek(known[number])
                answered = {**row, ANSWER: json.loads(side.readline())[ANSWER]}
                out.write(json.dumps(answered, ensure_ascii=False, default=str) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(whole, output)
        part.unlink()


def read_prompts(model: ChatModel, file: Path, system: str | None, raw: bool) -> list[np.ndarray]:
    """The tokens of each row's prompt; a `DataError` that names the row where there is none, or one that is too long.
    What of a conversation is not used is said."""
    prompts, unused, short, column = [], set[str](), 0, ""
    for number, row in enumerate(read_rows(file)):
        try:
            column = column or next((name for name in COLUMNS if row.get(name) is not None), "")
            if not column:
                raise DataError(f"has none of the columns {', '.join(COLUMNS)}; it has {', '.join(row)}.")
            if ANSWER in row:
                raise DataError(f"has a column {ANSWER!r}, which is where the answers go. Rename it.")
            ids = _prompt(model, row, column, system, raw, unused)
            left = room(model.model, len(ids))
            if not len(ids) or left < 1:
                length = f"is {len(ids):,} tokens, as long as the model can read at all, or longer"
                raise DataError(f"its prompt {length if len(ids) else 'is empty'}.")
        except DataError as error:
            raise DataError(f"{file}, row {number}: {error}") from None
        short += left < model.sampling["max_new_tokens"]
        prompts.append(ids)
    continued = raw or column in ("text", "source") or model.is_pair
    notice(f"{len(prompts):,} prompts: the column {column!r}, {'as it is' if continued else 'by the chat template'}.")
    if unused:
        notice(f"{file}: not used are {', '.join(sorted(unused))}.")
    if short:
        notice(f"{short:,} of them are so long that the model has no room for --max_new_tokens after them.")
    return prompts


def _prompt(
    model: ChatModel, row: dict[str, Any], column: str, system: str | None, raw: bool, unused: set[str]
) -> np.ndarray:
    value = row.get(column)
    if raw or model.is_pair or column in ("text", "source"):
        if system is not None:
            raise DataError(f"--system is for the chat template, and the column {column!r} is taken as it is.")
        return _ids(model.text(text_of(value, f"{column!r}")))
    model.require_template()
    for name in row.keys() & REFUSED_COLUMNS.keys() - {"history"}:
        if says_something(row[name]):
            passed_over("column", name, REFUSED_COLUMNS)
    beside = given_of(row)
    said = [message("system", row[name], f"{name!r}") for name in SYSTEM_COLUMNS if says_something(row.get(name))]
    said = said or ([{"role": "system", "content": system}] if system is not None else [])
    value = turns_in(value, asked=True) if column == "prompt" else value
    if column == "prompt" and isinstance(value, str):
        refuse_templated(value, "prompt")
        turns = [*history_of(row.get("history")), message("user", value, "'prompt'")]
    else:
        turns = messages_of(value, column, unused, answered=False)
    if turns[-1]["role"] == "assistant":
        raise DataError(f"column {column!r} ends with the assistant's turn: there is nothing to answer.")
    if said and turns[0]["role"] == "system":
        raise DataError(f"column {column!r} begins with a system message, and there is another. Drop one.")
    return _ids(model.prompt([*said, *turns], beside))


def _ids(inputs: Any) -> np.ndarray:
    return np.asarray(inputs["input_ids"][0], dtype=np.int32)


def _begin(side: BinaryIO, part: Path, header: dict[str, Any]) -> dict[int, int]:
    """Where in a file beside the output the answer to each row is; of a line that a kill left, nothing stays."""
    try:
        fcntl.flock(side, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CheckpointError(f"{part} is being written by another process.") from error
    known: dict[int, int] = {}
    side.seek(0)
    try:
        first = side.readline()
        while first.endswith(b"\n") and (line := side.readline()).endswith(b"\n"):
            known[int(json.loads(line)["row"])] = side.tell() - len(line)
        there = json.loads(first) if first.endswith(b"\n") else header
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{part} is damaged. Delete it to begin again.") from error
    changed = [
        f"  {name}: {there.get(name)} there, {value} here" for name, value in header.items() if there.get(name) != value
    ]
    if changed:
        raise CheckpointError(
            f"{part} was begun otherwise:\n" + "\n".join(changed) + "\nGo on with that, or delete it to begin again."
        )
    if known or first.endswith(b"\n"):
        side.seek(max(known.values(), default=0))
        side.readline()
        side.truncate()
        notice(f"Going on from {part}: {len(known):,} are answered.")
    else:
        side.truncate(0)
        _write(side, header)
    return known


def _write(side: BinaryIO, line: dict[str, Any]) -> int:
    """Write a line; returns where it begins."""
    place = side.seek(0, os.SEEK_END)
    side.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    side.flush()
    return place


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _weights(name: str) -> list[list[Any]]:
    """Name, size and time of the files that a model's weights are in; none of one on the Hub."""
    path, how = resolve(name)
    found = [Path(path, how["gguf_file"])] if how else sorted(Path(path).glob("*")) if Path(path).is_dir() else []
    stats = [(file.name, file.stat()) for file in found if file.suffix in WEIGHTS]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
