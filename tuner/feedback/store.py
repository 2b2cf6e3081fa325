"""Pairs of completions and what people answered, in one SQLite file.

An answer is on the disk when `answer` returns: one transaction, and `synchronous` one step above FULL, which also makes
the end of the journal durable. There is one answer a pair and annotator, whatever is sent twice. No write-ahead log:
the file alone is everything, so that it can be copied. Each call has its own connection, so that threads and processes
share nothing but the file.

Which of two completions is shown as A is a function of pair and annotator. It is settled here: the page sees A and B
only. The log, which triggers write, keeps what was undone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from tuner.data.turns import message
from tuner.errors import CheckpointError, DataError
from tuner.text.answers import Message

Prompt = str | list[Message]
# What a person can say of a pair, as it is shown.
CHOICES = ("a", "b", "tie", "both_bad", "skip")
LONGEST_NAME = 64
# Marks the file as ours: "tune" in ASCII.
APPLICATION = 0x74756E65
NOW = "strftime('%Y-%m-%dT%H:%M:%fZ')"
LOGGED = "INSERT INTO log (event, annotator, pair, choice, edited) VALUES"
SCHEMA = (
    f"PRAGMA application_id = {APPLICATION}",
    "CREATE TABLE begun (what TEXT NOT NULL)",
    "CREATE TABLE pair (id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, first TEXT, second TEXT)",
    f"""CREATE TABLE answer (
        id INTEGER PRIMARY KEY, pair INTEGER NOT NULL REFERENCES pair, annotator TEXT NOT NULL,
        choice TEXT NOT NULL CHECK (choice IN ('first', 'second', 'tie', 'both_bad', 'skip')), edited TEXT,
        swapped INTEGER NOT NULL, time TEXT NOT NULL DEFAULT ({NOW}), UNIQUE (pair, annotator))""",
    f"""CREATE TABLE log (
        time TEXT NOT NULL DEFAULT ({NOW}), event TEXT, annotator TEXT, pair INTEGER, choice TEXT, edited TEXT)""",
    f"""CREATE TRIGGER answered AFTER INSERT ON answer BEGIN
        {LOGGED} ('answer', new.annotator, new.pair, new.choice, new.edited); END""",
    f"""CREATE TRIGGER undone AFTER DELETE ON answer BEGIN
        {LOGGED} ('undo', old.annotator, old.pair, old.choice, old.edited); END""",
)
# Pairs that an annotator is still to see.
OPEN = """
FROM pair WHERE first <> second AND NOT EXISTS (SELECT * FROM answer WHERE answer.pair = pair.id AND annotator = :name)
AND (:most IS NULL OR (SELECT count(*) FROM answer WHERE answer.pair = pair.id AND choice <> 'skip') < :most)
"""
SIDES = ("first", "second")


class Shown(NamedTuple):
    """A pair as one annotator sees it; after `undo` with what they had answered."""

    pair: int
    prompt: Prompt
    a: str
    b: str
    choice: str | None = None
    edited: str | None = None


class Answer(NamedTuple):
    """One annotator's answer to a pair. `choice` is first, second, tie, both_bad or skip; `swapped` says that the
    second completion was shown as A; `time` is UTC."""

    pair: int
    prompt: Prompt
    first: str
    second: str
    annotator: str
    choice: str
    edited: str | None
    swapped: bool
    time: str


def _turn(annotator: str, pair: int) -> int:
    """A pair's place in an annotator's order."""
    return int.from_bytes(blake2b(f"{annotator} {pair}".encode(), digest_size=6).digest())


class Store:
    """A file of pairs and answers, made where there is none and `new` allows it.

    Args:
        most: annotators that a pair is shown to; None for all.

    Raises:
        DataError: no such file, or one that is no file of `tuner feedback`.
    """

    def __init__(self, path: Path, new: bool = False, most: int | None = None):
        self.path, self.most = path, most
        if not new and not path.is_file():
            raise DataError(f"{path}: no such file.")
        try:
            with self._open(write=new) as db:
                if new and not db.execute("SELECT * FROM sqlite_master").fetchone():
                    for statement in SCHEMA:
                        db.execute(statement)
                elif db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
                    raise sqlite3.DatabaseError("it holds something else")
        except sqlite3.Error as error:
            raise DataError(f"{path} is no file of 'tuner feedback': {error}.") from error

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, which ends with the block: all of it or nothing."""
        db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        db.create_function("turn", 2, _turn, deterministic=True)
        try:
            db.execute("PRAGMA synchronous = EXTRA")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()

    def begin(self, begun: dict[str, Any], pairs: Iterable[tuple[int, Prompt, str | None, str | None]]) -> None:
        """Put the pairs into a new file; of one that has some, check that it was begun by the same.

        Args:
            begun: what the pairs are made of, as JSON holds it.
            pairs: number, prompt, and the completions that are known.

        Raises:
            CheckpointError: the file was begun otherwise.
        """
        with self._open(write=True) as db:
            there = db.execute("SELECT what FROM begun").fetchone()
            if there is None:
                db.execute("INSERT INTO begun VALUES (?)", [json.dumps(begun)])
                rows = ((number, json.dumps(prompt, ensure_ascii=False), *texts) for number, prompt, *texts in pairs)
                db.executemany("INSERT INTO pair VALUES (?, ?, ?, ?)", rows)
                return
        was = json.loads(there[0])
        changed = [
            f"  {key}: {was.get(key)} there, {value} here" for key, value in begun.items() if was.get(key) != value
        ]
        if changed:
            listed = "\n".join(changed)
            raise CheckpointError(
                f"{self.path} was begun otherwise:\n{listed}\nGo on with that, or choose another file."
            )

    @property
    def begun(self) -> dict[str, Any]:
        """What the pairs are made of; nothing where there are none yet."""
        with self._open() as db:
            found = db.execute("SELECT what FROM begun").fetchone()
        return dict(json.loads(found[0])) if found else {}

    def missing(self, side: int) -> list[tuple[int, Prompt]]:
        """Pairs without a first (0) or second (1) completion: number and prompt."""
        with self._open() as db:
            found = db.execute(f"SELECT id, prompt FROM pair WHERE {SIDES[side]} IS NULL ORDER BY id").fetchall()
        return [(number, json.loads(prompt)) for number, prompt in found]

    def fill(self, side: int, pair: int, text: str) -> None:
        """Set a completion."""
        with self._open(write=True) as db:
            db.execute(f"UPDATE pair SET {SIDES[side]} = ? WHERE id = ?", [text, pair])

    def equal(self, forget: bool = False) -> list[int]:
        """Numbers of the pairs whose two completions are the same text; with `forget`, the second one is dropped."""
        with self._open(write=True) as db:
            found = [number for (number,) in db.execute("SELECT id FROM pair WHERE first = second ORDER BY id")]
            if forget:
                db.execute("UPDATE pair SET second = NULL WHERE first = second")
        return found

    def next(self, annotator: str) -> Shown | None:
        """The first pair, in their order, that an annotator has not answered; None where there is none left."""
        with self._open() as db:
            # Where a pair is for some of them, each begins elsewhere: they would all answer the first ones.
            order = "id" if self.most is None else "turn(:name, id)"
            row = db.execute(
                f"SELECT id, prompt, first, second {OPEN} ORDER BY {order} LIMIT 1", self._asked(annotator)
            )
            return _shown(annotator, found) if (found := row.fetchone()) else None

    def progress(self, annotator: str) -> tuple[int, int]:
        """How many pairs an annotator has answered or skipped, and how many are left."""
        with self._open() as db:
            done = db.execute("SELECT count(*) FROM answer WHERE annotator = ?", [annotator]).fetchone()[0]
            return done, db.execute(f"SELECT count(*) {OPEN}", self._asked(annotator)).fetchone()[0]

    def answer(self, annotator: str, pair: int, choice: str, edited: str | None = None) -> bool:
        """Keep an answer; False where the annotator has answered the pair already, which then stays.

        Args:
            choice: one of `CHOICES`, by what was shown.
            edited: the better completion as it should read; only a text other than both counts as an edit.

        Raises:
            DataError: no name, no such choice or pair, or an edit that makes the better text the other one.
        """
        named(annotator)
        if choice not in CHOICES:
            raise DataError("Choose first: A, B, tie or both bad.")
        with self._open(write=True) as db:
            found = db.execute("SELECT id, prompt, first, second FROM pair WHERE id = ?", [pair]).fetchone()
            if found is None:
                raise DataError(f"There is no pair {pair}.")
            shown, swapped = _shown(annotator, found), _swapped(annotator, pair)
            if choice in ("a", "b"):
                better, other = (shown.a, shown.b) if choice == "a" else (shown.b, shown.a)
                choice = SIDES[(choice == "b") != swapped]
                edited = None if not edited or _lines(edited) in ("", _lines(better)) else edited
                if edited and _lines(edited) == _lines(other):
                    raise DataError("The edited text is the other completion: choose that one, or edit further.")
            else:
                edited = None
            insert = "INSERT OR IGNORE INTO answer (pair, annotator, choice, edited, swapped) VALUES (?, ?, ?, ?, ?)"
            return db.execute(insert, [pair, annotator, choice, edited, swapped]).rowcount == 1

    def undo(self, annotator: str) -> Shown | None:
        """Take an annotator's last answer back; returns the pair with that answer, None where there was none."""
        with self._open(write=True) as db:
            delete = (
                "DELETE FROM answer WHERE id = (SELECT max(id) FROM answer WHERE annotator = ?) RETURNING pair, choice"
            )
            last = db.execute(f"{delete}, edited", [annotator]).fetchone()
            if last is None:
                return None
            pair, choice, edited = last
            found = db.execute("SELECT id, prompt, first, second FROM pair WHERE id = ?", [pair]).fetchone()
        if choice in SIDES:
            choice = "ab"[(choice == "second") != _swapped(annotator, pair)]
        return _shown(annotator, found)._replace(choice=None if choice == "skip" else choice, edited=edited)

    def answers(self) -> list[Answer]:
        """All answers, skips too, in the order of the pairs."""
        columns = "pair.id, prompt, first, second, annotator, choice, edited, swapped, time"
        with self._open() as db:
            found = db.execute(
                f"SELECT {columns} FROM answer JOIN pair ON pair.id = answer.pair ORDER BY pair.id, answer.id"
            )
            return [Answer(*row)._replace(prompt=json.loads(row[1]), swapped=bool(row[7])) for row in found]

    def count(self) -> int:
        """How many pairs can be shown."""
        with self._open() as db:
            return int(db.execute("SELECT count(*) FROM pair WHERE first <> second").fetchone()[0])

    def _asked(self, annotator: str) -> dict[str, Any]:
        return {"name": named(annotator), "most": self.most}


def messages(prompt: Prompt) -> list[Message]:
    """A prompt as a conversation."""
    return [message("user", prompt, "")] if isinstance(prompt, str) else prompt


def named(annotator: str) -> str:
    """An annotator's name; a DataError where it is none."""
    if not annotator.strip() or len(annotator) > LONGEST_NAME or not annotator.isprintable():
        raise DataError(f"Enter a name of at most {LONGEST_NAME} letters.")
    return annotator


def _swapped(annotator: str, pair: int) -> bool:
    return bool(blake2b(f"{pair} {annotator}".encode()).digest()[0] & 1)


def _shown(annotator: str, found: tuple[int, str, str, str]) -> Shown:
    pair, prompt, *texts = found
    a, b = reversed(texts) if _swapped(annotator, pair) else texts
    return Shown(pair, json.loads(prompt), a, b)


def _lines(text: str) -> str:
    """A text as a page's box of text gives it back."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()
