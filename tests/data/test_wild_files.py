"""Files as they are found: each was misread or dropped once, or ended in a traceback."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from tuner.config.arguments import RecipeArguments
from tuner.corpus.reading import open_stream
from tuner.data.columns import suggestion
from tuner.data.labels import check_labels
from tuner.data.mixture import data_sources
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import ArgumentError, DataError
from tuner.rl.prompts import read_prompts

SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}
GOOD, BAD = {"role": "assistant", "content": "It is 4."}, {"role": "assistant", "content": "It is 5."}
AGAIN, MORE = {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "6."}


def preference(row, kind="preference"):
    _, rows, unused = canonicalize(Dataset.from_list([row]), "rows", (kind,))
    return rows[0] | {"unused": unused}


def put(folder, name, *rows):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ---- preferences ----


@pytest.mark.parametrize("column", ["input", "query", "question", "instruction"])
def test_a_question_of_another_name_is_the_prompt(column):
    row = {"system": "Be brief.", column: "2 + 2?", "chosen": "It is 4.", "rejected": "It is 5."}
    found = preference(row)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ([SYSTEM, ASKED], [GOOD], [BAD])
    assert not found["unused"] and preference(row, "ranked")["prompt"] == [SYSTEM, ASKED]


@pytest.mark.parametrize("answers", [("It is 4.", "It is 5."), ([GOOD], [BAD])])
def test_a_column_that_may_be_the_prompt_is_asked_about(answers):
    row = {"problem": "2 + 2?", "chosen": answers[0], "rejected": answers[1]}
    with pytest.raises(DataError, match=r"is the column 'problem' the prompt\? Pass --column_mapping problem=prompt"):
        preference(row)
    with pytest.raises(DataError, match="do not begin alike"):
        preference({"chosen": "Four.", "rejected": "It is 5."})


@pytest.mark.parametrize("before", [[SYSTEM], [SYSTEM, ASKED, GOOD]])
def test_a_prompt_of_which_a_part_is_repeated_stays_whole(before):
    found = preference({"prompt": [*before, AGAIN], "chosen": [AGAIN, MORE], "rejected": [AGAIN, BAD]})
    assert (found["prompt"], found["chosen"]) == ([*before, AGAIN], [MORE])


def test_a_prompt_that_stands_in_another_question_is_not_that():
    asked = {"role": "user", "content": "High mountains?"}
    with pytest.raises(DataError, match="do not repeat column 'prompt'"):
        preference({"prompt": "Hi", "chosen": [asked, GOOD], "rejected": [asked, BAD]})
    found = preference({"prompt": " 2 + 2?\n", "chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]})
    assert found["prompt"] == [SYSTEM, ASKED]


def test_what_stands_beside_preferences_is_used():
    pair = {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "system": "Be brief."}
    assert preference(pair)["prompt"] == [SYSTEM, ASKED]
    row = {"prompt": "And 3 + 3?", "chosen": "6.", "rejected": "7.", "history": [["2 + 2?", "It is 4."]]}
    assert preference(row)["prompt"] == [ASKED, GOOD, AGAIN]
    _, rows, _ = canonicalize(
        Dataset.from_list([{"messages": [ASKED, GOOD], "label": 1}]), "rows", ("preference", "unpaired")
    )
    assert rows[0]["label"] is True


def test_whole_dialogues_are_no_answers_to_what_stands_beside():
    pair = {
        "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: It is 4.",
        "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: It is 5.",
    }
    found = preference({**pair, "query": "x17"})
    assert (found["prompt"], found["chosen"]) == ([ASKED], [GOOD])
    found = preference({"input": "2 + 2?", "chosen": "2 + 2? It is 4.", "rejected": "2 + 2? It is 5."})
    assert [turn["content"].strip() for turn in (*found["prompt"], *found["chosen"])] == ["2 + 2? It is", "4."]
    wrapped = {"role": "user", "content": "Answer briefly: 2 + 2?"}
    row = {"prompt": "2 + 2?", "chosen": [wrapped, GOOD], "rejected": [wrapped, BAD]}
    assert preference(row)["prompt"] == [wrapped]
    spaced = {"role": "user", "content": "2 + 2? "}
    row = {"prompt": [SYSTEM, spaced], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}
    assert len(preference(row)["prompt"]) == 2


# ---- labels ----


def test_classes_marked_by_zeros_and_ones_are_refused():
    for value in ([1.0, 0.0, 0.0], [0, 1, 0]):
        with pytest.raises(DataError, match="marks classes by zeros and ones"):
            canonicalize(Dataset.from_list([{"text": "a", "labels": value}]), "rows", ("classes",))
    with pytest.raises(DataError, match="must name a class, not list"):
        canonicalize(Dataset.from_list([{"text": "a", "label": '[[0, 2, "ORG"]]'}]), "rows", ("classes",))


def test_numbers_of_a_csv_are_numbers(tmp_path):
    lines = "".join(f"text {n},{n / 7:.2f}\n" for n in range(60))
    (tmp_path / "rows.csv").write_text(f"text,label\n{lines}", encoding="utf-8")
    rows, held_out = load_splits(str(tmp_path / "rows.csv"))
    kind, found, _ = canonicalize(rows, "rows", ("score",))
    assert kind == "score" and all(isinstance(value, float) for value in found["label"])
    kind, found, _ = canonicalize(rows, "rows", ("class", "classes", "score"))
    with pytest.raises(DataError, match=r"holds texts of numbers, 0.*--problem_type regression"):
        check_labels(found, canonicalize(held_out, "rows", (kind,))[1], kind, "rows")
    pair = {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "margin": "1.5"}
    assert preference(pair, "ranked")["margin"] == 1.5


# ---- turns ----


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "user", "content": [{"text": "What is this?", "image": "cat.jpg"}]}, "a part of the type 'image'"),
        (
            {"role": "user", "content": [{"type": "text", "text": "q", "image_url": {"url": "x"}}]},
            "the type 'image_url'",
        ),
        ({"role": "user", "from": "gpt", "content": "q"}, "turn 0 has 'role' and 'from', which say two things"),
        ({"role": "user", "content": "q", "weight": "1"}, "'weight' is '1'"),
    ],
)
def test_turns_that_say_more_than_text(turn, said):
    with pytest.raises(DataError, match=said):
        turns = [turn, GOOD] if "weight" not in turn else [ASKED, {**turn, "role": "assistant"}]
        canonicalize(Dataset.from_list([{"messages": json.dumps(turns)}]), "rows")


# ---- prompts of PPO ----


def test_prompts_of_many_rows_whose_later_ones_hold_more():
    plain = [{"messages": json.dumps([ASKED])}] * 1001
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    last = [ASKED, {**GOOD, "weight": 0, "reasoning_content": "2 and 2"}, AGAIN, call, {"role": "tool", "content": "6"}]
    rows, unused = read_prompts(
        Dataset.from_list([*plain, {"messages": json.dumps([{**last[0], "mood": "sad"}, *last[1:]])}]), "set"
    )
    assert rows[1001]["prompt"][3]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert rows[0]["prompt"] == [ASKED] and list(unused) == ["message key 'mood'"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "q", "system": "s"}, "the column 'system' is for a conversation, and 'query' is a text"),
        ({"query": "q", "history": [["a", "b"]]}, "the column 'history' is for a conversation"),
        ({"prompt": "q", "images": ["cat.jpg"]}, "the column 'images' is not supported"),
        ({"prompt": "q", "tools": "hammer"}, "row 0: column 'tools' must be JSON"),
    ],
)
def test_what_prompts_cannot_have_beside_them(row, said):
    with pytest.raises(DataError, match=said):
        read_prompts(Dataset.from_list([row]), "set")


def test_a_prompt_that_looks_like_a_list_is_a_text():
    found, _ = read_prompts(Dataset.from_list([{"prompt": '["apple", "pear"]'}]), "set")
    assert found[0]["prompt"] == [{"role": "user", "content": '["apple", "pear"]'}]


# ---- files ----


def test_nulls_that_arrow_adds_are_no_arguments(tmp_path):
    def called(**arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]

    Dataset.from_list([{"messages": called(a=1)}, {"messages": called(b=2)}]).to_parquet(tmp_path / "rows.parquet")
    stream, _ = open_stream(str(tmp_path / "rows.parquet"), None, ("train", "test"), 0, 1)
    assert [row["text"].partition("\n")[2] for row in stream] == [
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "f", "arguments": {"b": 2}}',
    ]


def test_shards_of_parquet_that_differ(tmp_path):
    parts = (
        {"text": ["a"], "note": pa.nulls(1)},
        {"text": ["b"], "note": ["x"]},
        {"text": ["c"], "note": ["y"], "more": [1]},
        {"text": pa.array([], pa.string()), "note": pa.array([], pa.string())},
    )
    for number, part in enumerate(parts):
        parquet.write_table(pa.table(part), tmp_path / f"train-{number}.parquet")
    train, held_out = load_splits(str(tmp_path), test_split_size=1)
    rows = sorted([*train, *held_out], key=lambda row: row["text"])
    assert [(row["text"], row["note"], row["more"]) for row in rows] == [
        ("a", None, None),
        ("b", "x", None),
        ("c", "y", 1),
    ]
    with pytest.raises(DataError, match="is empty"):
        load_splits(str(tmp_path / "train-3.parquet"))


def test_shards_whose_types_differ_are_those_of_the_first(tmp_path):
    for number, ids in enumerate((["1", "2"], [3, 4])):
        parquet.write_table(pa.table({"text": ["a", "b"], "id": ids}), tmp_path / f"train-{number}.parquet")
    assert {type(value) for value in load_splits(str(tmp_path), test_split_size=1)[0]["id"]} == {str}


def test_a_card_s_folders_are_its_configurations(tmp_path):
    put(tmp_path, "en/train.jsonl", *[{"text": "one"}] * 4)
    put(tmp_path, "de/train.jsonl", *[{"text": "eins"}] * 4)
    said = "---\nconfigs:\n- config_name: default\n  data_dir: en\n- config_name: de\n  data_dir: de\n---\n"
    (tmp_path / "README.md").write_text(said, encoding="utf-8")
    assert set(load_splits(str(tmp_path))[0]["text"]) == {"one"}
    assert set(load_splits(str(tmp_path), config="de")[0]["text"]) == {"eins"}


def test_a_configuration_that_nothing_reads_is_refused(tmp_path):
    put(tmp_path, "train.jsonl", *[{"text": "one"}] * 4)
    for name in (str(tmp_path), str(tmp_path / "train.jsonl"), "builtin:sums"):
        with pytest.raises(DataError, match="--dataset_config nonsense"):
            load_splits(name, config="nonsense")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: gone.jsonl\n---\n", "utf-8")
    with pytest.raises(DataError, match=r"README\.md declares what is not there"):
        load_splits(str(tmp_path))


def test_files_of_any_kind_that_are_not_read_are_named(tmp_path, capsys):
    put(tmp_path, "train.jsonl", *[{"text": "one"}] * 4)
    for name in ("more.tsv", "b.xlsx", "_notes.txt", ".hidden", "LICENSE", "README.md"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    load_splits(str(tmp_path))
    assert capsys.readouterr().err.endswith("in no split (train) and not read: b.xlsx, more.tsv.\n")


def test_a_mapping_of_another_type_is_named():
    args = RecipeArguments(dataset_name=['{"name": "a", "column_mapping": ["x=y"]}'], output_dir="o")
    with pytest.raises(ArgumentError, match="'column_mapping' is an object of names, or a text"):
        data_sources(args)


def test_the_suggestion_that_keeps_most_names():
    shapes = [("messages",), ("prompt", "completion"), ("instruction", "output"), ("text",)]
    row = {"instruction": "Add.", "input": "2 and 2", "reply": "4"}
    assert suggestion(row, shapes) == "--column_mapping reply=output"
