"""The store: one answer a pair and annotator, blind, undone when asked; another's file is refused."""

from __future__ import annotations

import sqlite3
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tuner.errors import CheckpointError, DataError
from tuner.feedback.agreement import report
from tuner.feedback.store import SIDES, Store

PAIRS = [(n, f"prompt {n}", f"first {n}", f"second {n}") for n in range(8)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "f.sqlite", new=True)
    made.begin({"prompts": "x"}, PAIRS)
    return made


def kept(store: Store) -> list[tuple]:
    return [(answer.pair, answer.annotator, answer.choice, answer.edited) for answer in store.answers()]


def say(store: Store, annotator: str, pair: int, choice: str) -> None:
    """Answer with a side of the file, whichever way it is shown."""
    if choice in SIDES:
        shown = store.next(annotator)
        assert shown is not None and shown.pair == pair
        choice = "a" if shown.a == f"{choice} {pair}" else "b"
    assert store.answer(annotator, pair, choice)


def test_pairs_come_in_their_order_and_each_once(store):
    seen = []
    while (shown := store.next("ada")) is not None:
        assert store.progress("ada") == (len(seen), 8 - len(seen))
        assert {shown.a, shown.b} == {f"first {shown.pair}", f"second {shown.pair}"}
        seen.append(shown.pair)
        assert store.answer("ada", shown.pair, ("a", "b", "tie", "both_bad", "skip")[shown.pair % 5])
    assert seen == list(range(8)) and store.progress("ada") == (8, 0)
    assert store.next("bob").pair == 0, "another's answers are not one's own"


def test_what_is_sent_twice_counts_once_and_the_first_stays(store):
    assert store.answer("ada", 3, "tie")
    assert not store.answer("ada", 3, "both_bad")
    assert kept(store) == [(3, "ada", "tie", None)]


def test_which_one_is_shown_as_a_is_by_chance_and_stays(tmp_path):
    store = Store(tmp_path / "f.sqlite", new=True)
    store.begin({}, [(n, "p", "first", "second") for n in range(150)])
    first_as_a, differ = 0, 0
    for number in range(150):
        ada, bob = store.next("ada"), store.next("bob")
        assert ada == store.next("ada") and ada.pair == number
        first_as_a += ada.a == "first"
        differ += ada.a != bob.a
        store.answer("ada", number, "a")
        store.answer("bob", number, "a")
    assert 50 < first_as_a < 100 and 50 < differ < 100, "four standard deviations"
    counts = Counter(answer.choice for answer in store.answers() if answer.annotator == "ada")
    assert counts == {"first": first_as_a, "second": 150 - first_as_a}
    assert all((answer.choice == "second") == answer.swapped for answer in store.answers())


def test_edits(store):
    shown = store.next("ada")
    with pytest.raises(DataError, match="is the other completion"):
        store.answer("ada", 0, "a", shown.b + "\r\n")
    store.answer("ada", 0, "a", "better still")
    store.answer("ada", 1, "b", store.next("ada").b.replace("\n", "\r\n") + " ")
    store.answer("ada", 2, "tie", "of no use")
    store.answer("ada", 3, "a", "  ")
    assert [answer.edited for answer in store.answers()] == ["better still", None, None, None]


def test_undo_gives_the_answer_back_and_the_log_keeps_it(store):
    assert store.undo("ada") is None
    store.answer("ada", 0, "b", "edited")
    store.answer("bob", 0, "a")
    store.answer("ada", 1, "skip")
    back = store.undo("ada")
    assert (back.pair, back.choice) == (1, None)
    again = store.undo("ada")
    assert (again.pair, again.choice, again.edited) == (0, "b", "edited")
    assert store.undo("ada") is None and [row[1] for row in kept(store)] == ["bob"]
    log = sqlite3.connect(store.path).execute("SELECT event, annotator, pair FROM log").fetchall()
    assert [row for row in log if row[1] == "ada"] == [
        ("answer", "ada", 0), ("answer", "ada", 1), ("undo", "ada", 1), ("undo", "ada", 0),
    ]  # fmt: skip


def test_a_pair_for_one_is_answered_by_one(tmp_path):
    """Two people at the same pace, each looking at a pair while the other does."""
    store = Store(tmp_path / "shared.sqlite", new=True, most=1)
    store.begin({}, [(n, f"prompt {n}", "one", "two") for n in range(20)])
    answered = 0
    while seen := [(who, shown) for who in ("ann", "bob") if (shown := store.next(who))]:
        answered += sum(store.answer(who, shown.pair, "tie") for who, shown in seen)
    assert 20 <= answered <= 23  # but for the last ones


def test_pairs_for_so_many_annotators(store):
    shared = Store(store.path, most=2)
    for name in ("ada", "bob"):
        shared.answer(name, 0, "tie")
    shared.answer("cy", 1, "skip")
    shared.answer("ada", 1, "tie")
    assert shared.progress("dee") == (0, 7) and store.progress("dee") == (0, 8)
    seen = set()
    while shown := shared.next("dee"):
        seen.add(shown.pair)
        shared.answer("dee", shown.pair, "tie")
    assert seen == set(range(1, 8)), "who skips does not count"


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "\x00"])
def test_names(store, name):
    with pytest.raises(DataError, match="at most 64"):
        store.next(name)
    with pytest.raises(DataError, match="at most 64"):
        store.answer(name, 0, "a")


@pytest.mark.parametrize(
    ("pair", "choice", "message"),
    [(0, "", "Choose first"), (0, "first", "Choose first"), (99, "a", "no pair 99"), (None, "a", "no pair None")],
)
def test_what_is_no_answer(store, pair, choice, message):
    with pytest.raises(DataError, match=message):
        store.answer("ada", pair, choice)
    assert kept(store) == []


def test_a_file_that_is_another(tmp_path):
    with pytest.raises(DataError, match=r"f\.sqlite: no such file"):
        Store(tmp_path / "f.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database at all, but long enough to be read as one" * 20)
    for new in (False, True):
        with pytest.raises(DataError, match=r"text\.sqlite is no file of 'tuner feedback': file is not a database"):
            Store(tmp_path / "text.sqlite", new=new)
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE answer (x)")
    for new in (False, True):
        with pytest.raises(DataError, match=r"other\.sqlite is no file of 'tuner feedback'"):
            Store(tmp_path / "other.sqlite", new=new)


def test_a_file_that_was_begun_otherwise(store):
    store.begin({"prompts": "x"}, [])
    with pytest.raises(CheckpointError, match=r"begun otherwise:\n  prompts: x there, y here\n"):
        store.begin({"prompts": "y"}, PAIRS)
    assert store.count() == 8


def answer_all(path: Path, name: str) -> int:
    store, kept = Store(path), 0
    while (shown := store.next(name)) is not None:
        kept += store.answer(name, shown.pair, "ab"[shown.pair % 2])
    return kept


def test_several_processes_at_once(store):
    """Five annotators, one of them in two processes."""
    names = ["ada", "bob", "cy", "dee", "eve", "eve"]
    with ProcessPoolExecutor(len(names)) as pool:
        counts = list(pool.map(answer_all, [store.path] * len(names), names))
    assert counts[:4] == [8] * 4 and sum(counts[4:]) == 8
    assert Counter(answer.annotator for answer in store.answers()) == dict.fromkeys(names, 8)


def test_agreement_is_krippendorffs_alpha(tmp_path):
    """Three annotators, twelve pairs, some left out: by the formula of Krippendorff 2011."""
    codes = {"ada": "1232122123--", "bob": "123324123231", "cy": "-33321-22343"}
    said = {"1": "first", "2": "second", "3": "tie", "4": "both_bad"}
    store = Store(tmp_path / "f.sqlite", new=True)
    store.begin({}, [(n, "p", f"first {n}", f"second {n}") for n in range(12)])
    units: list[list[str]] = [[] for _ in range(12)]
    for name, row in codes.items():
        for number, code in enumerate(row):
            if code == "-":
                store.answer(name, number, "skip")
            else:
                say(store, name, number, said[code])
                units[number].append(code)
    units = [unit for unit in units if len(unit) > 1]
    counts = Counter(code for unit in units for code in unit)
    total = counts.total()
    observed = (
        sum(
            sum(one != other for i, one in enumerate(unit) for j, other in enumerate(unit) if i != j) / (len(unit) - 1)
            for unit in units
        )
        / total
    )
    expected = sum(counts[one] * counts[other] for one in counts for other in counts if one != other)
    alpha = 1 - observed / (expected / (total * (total - 1)))
    assert dict(report(store))["Krippendorff's alpha"] == f"{alpha:.2f}" != "1.00"


def test_the_report(store):
    store.begin({"prompts": "x"}, [])
    assert dict(report(store)) == {"pairs": "8", "pairs that several answered": "0"}
    for name in ("ada", "bob"):
        for number in range(4):
            say(store, name, number, "first")
    say(store, "ada", 4, "tie")
    store.answer("ada", 5, "skip")
    found = dict(report(store))
    assert found["answers of ada"] == "5, and 1 skipped" and found["the first completion"] == "8 (89%)"
    assert found["Krippendorff's alpha"] == "none: all say the same" and found["two annotators say the same"] == "100%"
