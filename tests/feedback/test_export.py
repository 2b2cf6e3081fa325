"""What is exported is what preference training takes, ties do not pass for preferences, and Argilla's files come in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset

from tests.text.samples import talk
from tuner import cli
from tuner.data.schema import canonicalize
from tuner.data.sources import load_rows
from tuner.feedback.store import Store

TURNS = talk("q", "a", "q2", system="s")


def answered(folder: Path, prompts) -> Path:
    """Four pairs: the first better, the second better and edited, a tie, both bad; by one, and a skip by another."""
    store = Store(folder / "f.sqlite", new=True)
    store.begin({"models": ["m", "n"]}, [(n, prompt, f"first {n}", f"second {n}") for n, prompt in enumerate(prompts)])
    shown = store.next("ada")
    store.answer("ada", 0, "a" if shown.a == "first 0" else "b")
    shown = store.next("ada")
    store.answer("ada", 1, "a" if shown.a == "second 1" else "b", "edited\nä 1")
    store.answer("ada", 2, "tie")
    store.answer("ada", 3, "both_bad")
    store.answer("bob", 0, "skip")
    return store.path


def call(*words, code=None):
    if code is None:
        return cli.main(list(map(str, words)))
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, words)))
    assert stop.value.code == code


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_texts(tmp_path, suffix, capsys):
    output = tmp_path / f"out.{suffix}"
    call("feedback", "export", answered(tmp_path, ["p", "ü", "p", "p"]), "--output", output)
    assert "2 rows; 1 tie and 1 both bad left out (--ties)." in capsys.readouterr().out
    rows = [dict(row) for row in load_rows(str(output))]
    assert all(row.pop("time")[:2] == "20" and row.pop("annotator") == "ada" for row in rows)
    edited = {"prompt": "ü", "chosen": "edited\nä 1", "rejected": "first 1", "edited": True}
    assert rows == [
        {"prompt": "p", "chosen": "first 0", "rejected": "second 0", "edited": False,
         "chosen_model": "m", "rejected_model": "n"},
        {**edited, "chosen_model": "n", "rejected_model": "m"},
    ]  # fmt: skip


@pytest.mark.parametrize("ties", [[], ["--ties"]])
def test_reward_models_take_it_with_ties(tmp_path, ties):
    output = tmp_path / "out.jsonl"
    call("feedback", "export", answered(tmp_path, ["p", "ü", "p", "p"]), "--output", output, *ties)
    kind, rows, _ = canonicalize(load_rows(str(output)), "out", ("ranked",))
    assert kind == "ranked" and [bool(row["tie"]) for row in rows] == [False, False] + [True, True] * len(ties)


@pytest.mark.parametrize("prompts", [["p"] * 4, [TURNS] * 4, ["p", TURNS, "p", TURNS]])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_dpo_takes_it_as_it_is(tmp_path, prompts, suffix):
    output = tmp_path / f"out.{suffix}"
    call("feedback", "export", answered(tmp_path, prompts), "--output", output)
    kind, rows, unused = canonicalize(load_rows(str(output)), "out", ("preference",))
    assert kind == "preference" and len(rows) == 2
    for row, prompt in zip(rows, prompts, strict=False):
        assert row["prompt"] == (talk(prompt) if isinstance(prompt, str) else prompt)
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "first 0"}]
    assert set(unused) == {
        f"column {name!r}" for name in ("annotator", "time", "edited", "chosen_model", "rejected_model")
    }


def test_ties_are_marked_for_what_can_use_them(tmp_path, capsys):
    file, output = answered(tmp_path, [TURNS] * 4), tmp_path / "out.parquet"
    call("feedback", "export", file, "--output", output, "--ties")
    assert "4 rows; 1 tie and 1 both bad among them." in capsys.readouterr().out
    rows = Dataset.from_parquet(str(output), cache_dir=str(tmp_path))
    assert rows["tie"][:] == [False, False, True, True] and rows.features["tie"].dtype == "bool"
    assert rows[2]["prompt"] == TURNS and rows[2]["chosen"] == [{"role": "assistant", "content": "first 2"}]


def test_nothing_to_write_and_what_cannot_be_written(tmp_path, capsys):
    store = Store(tmp_path / "none.sqlite", new=True)
    call("feedback", "export", store.path, "--output", tmp_path / "out.jsonl", code=2)
    assert "there is no preference to write" in capsys.readouterr().err
    for output, said in (("out.csv", ".jsonl or .parquet"), ("none.sqlite", ".jsonl"), ("no/x.jsonl", "no folder")):
        call("feedback", "export", store.path, "--output", tmp_path / output, code=2)
        assert said in capsys.readouterr().err
    (tmp_path / "there.jsonl").write_text("")
    call("feedback", "export", store.path, "--output", tmp_path / "there.jsonl", code=2)
    assert "is there already" in capsys.readouterr().err
    call("feedback", "report", tmp_path / "nothing.sqlite", code=2)
    assert "nothing.sqlite: no such file." in capsys.readouterr().err
    call("feedback", "report", answered(tmp_path, ["p"] * 4))
    assert "answers of ada                 4, and 0 skipped" in capsys.readouterr().out


def record(number: int, values: list, status: list[str], **more) -> dict:
    """As Argilla's `records.to_list(flatten=True)` gives it."""
    return {
        "id": f"r{number}", "status": "completed", "_server_id": "x", "prompt": f"p {number}",
        "response1": f"one {number}", "response2": f"two {number}", "length": 3,
        "better.responses": values, "better.responses.status": status,
        "better.responses.users": [f"u{n}" for n in range(len(status))], "better.suggestion": "response1",
        "better.suggestion.agent": "gpt", "better.suggestion.score": 0.9, **more,
    }  # fmt: skip


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(folder: Path, *rows: dict, flags=()) -> list[dict]:
    output = folder / "out.jsonl"
    call("feedback", "import", write(folder / "argilla.jsonl", *rows), "--output", output, *flags)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_argillas_rankings(tmp_path, capsys):
    legacy = [{"rank": 2, "value": "response1"}, {"rank": 1, "value": "response2"}]
    tie = [{"rank": 1, "value": "response1"}, {"rank": 1, "value": "response2"}]
    rows = imported(
        tmp_path,
        record(0, [["response1", "response2"], ["response2", "response1"]], ["submitted", "draft"]),
        record(1, [legacy, tie, legacy], ["submitted", "submitted", "discarded"]),
        record(2, [], []) | {f"better.responses{part}": None for part in ("", ".users", ".status")},
    )  # fmt: skip
    assert rows == [
        {"prompt": "p 0", "chosen": "one 0", "rejected": "two 0", "annotator": "u0"},
        {"prompt": "p 1", "chosen": "two 1", "rejected": "one 1", "annotator": "u0"},
    ]
    said = capsys.readouterr().out
    assert "Responses: 3 submitted, 1 draft, 1 discarded. Only those that are submitted count." in said
    assert "2 rows; 1 tie left out (--ties)." in said
    kind, found, _ = canonicalize(load_rows(str(tmp_path / "out.jsonl")), "out", ("preference",))
    assert kind == "preference" and len(found) == 2


def test_argillas_labels_and_chats_and_longer_rankings(tmp_path):
    chat = [{"role": "user", "content": "q"}]
    flags = ("--label", "A=response1", "--label", "B=response2", "--label", "same=tie", "--prompt", "chat", "--ties")
    row = record(0, ["B", "same"], ["submitted"] * 2, chat=chat)
    other = {"other.responses": ["x"], "other.responses.users": ["u"], "other.responses.status": ["submitted"]}
    rows = imported(tmp_path, {**row, **other}, flags=(*flags, "--question", "better"))
    assert [(row["chosen"][0]["content"], row["tie"]) for row in rows] == [("two 0", False), ("one 0", True)]
    assert all(row["prompt"] == chat for row in rows)
    (tmp_path / "out.jsonl").unlink()
    rows = imported(tmp_path, record(0, [["c", "response1", "response2"]], ["submitted"], c="three"))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        ("three", "one 0"), ("three", "two 0"), ("one 0", "two 0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "flags", "message"),
    [
        (record(0, ["A"], ["submitted"]), (), "row 0: a response is the label 'A': say what each label stands for"),
        (record(0, [["response1", "response3"]], ["submitted"]), (), "no field 'response3'; it has .*Did you mean"),
        (record(0, [["response1", "response2"]], ["submitted"]), ("--prompt", "promt"), "no field 'promt'"),
        (record(0, [["response1"]], ["submitted"]), (), "a label or a ranking of two or more"),
        (record(0, [3], ["submitted"]), (), "a label or a ranking of two or more, not int 3"),
        (record(0, [[1, 2]], ["submitted"]), (), "a ranking must be names, or objects with 'rank' and 'value'"),
        (record(0, [["response1", "response2"]], ["submitted"] * 2), (), "are not lists of one length"),
        (record(0, 3, []), (), "are not lists of one length"),
        (record(0, [], []) | {"b.responses": []}, (), "--question says which .*: better, b"),
        ({"prompt": "p"}, (), "--question says which .*: none; a column <question>.responses is expected"),
        (record(0, [], []), ("--question", "x"), "no field 'x.responses'"),
        (record(0, [], []), ("--label", "A"), "--label A: expected LABEL=FIELD"),
        (record(0, [["response1", "response2"]], ["draft"]), (), "there is no preference to write"),
    ],
)  # fmt: skip
def test_argilla_files_that_say_something_else(tmp_path, row, flags, message, capsys):
    file = write(tmp_path / "a.jsonl", row)
    call("feedback", "import", file, "--output", tmp_path / "out.jsonl", *flags, code=2)
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said and not (tmp_path / "out.jsonl").exists()
