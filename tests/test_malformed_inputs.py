"""Whatever is wrong with a file, its user gets exit code 2 and one message that names it; never a traceback.

Most cases run in this process, through the functions that a recipe calls up to its sequences: importing them anew takes
seconds. A few run as their user would run them.
"""

import json
import re

import datasets
import pytest

import tuner
from tests.recipes import ROOT, run_recipe
from tests.text import samples
from tests.text.samples import talk
from tuner.config.recipes import arguments_of
from tuner.objectives.records import Layout
from tuner.text.chat_templates import TUNER_TEMPLATE

SFT = arguments_of(ROOT / "recipes" / "sft.py")
GOOD = json.dumps({"messages": talk("hi", "there")}) + "\n"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}

# Name of a file, its content, and the message: FILE stands for the file's path, … for anything.
DATA = {
    "bad JSON mid-file": ("a.jsonl", GOOD * 3 + '{"text": [\n' + GOOD, "FILE, line 4, column 11: not JSON: …"),
    "truncated": ("a.jsonl", GOOD * 3 + GOOD[:30], "FILE, line 4, column 31: not JSON: Expecting property …"),
    "truncated list": ("a.json", f"[\n{GOOD},\n{GOOD[:30]}", "FILE, line 4, column 31: not JSON: Expecting …"),
    "text": ("a.jsonl", "hello\nthere\n", "FILE, line 1, column 1: not JSON: … Expected one object a line, or …"),
    "comma at the end": ("a.jsonl", '{"text": "a"},\n', "FILE, line 1, column 14: not JSON: Extra data. …"),
    "object over lines": ("a.json", '{\n"text": "a"\n}', "FILE, line 1, column 2: not JSON: …. Expected one object …"),
    "scalars": ("a.jsonl", "1\n2\n", "FILE, line 1: a row must be an object, not int."),
    "list of scalars": ("a.json", '["one", "two"]', "FILE, element 0: a row must be an object, not str."),
    "list in .jsonl": ("a.jsonl", f"[{GOOD.strip()}]\n", "FILE, line 1: a row must be an object, not list."),
    "null row": ("a.jsonl", GOOD + "null\n", "FILE, line 2: a row must be an object, not NoneType."),
    "single object": ("a.json", GOOD, "FILE has 1 row; at least 2 are needed, one to train on and one to validate on."),
    "empty objects": ("a.jsonl", "{}\n{}\n", "FILE, line 1: the object is empty."),
    "nesting without end": ("a.jsonl", "[" * 100_000, "FILE, line 1: maximum recursion depth exceeded …"),
    "number without end": ("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "FILE, line 1: Exceeds the limit …"),
    "half a character": ("a.jsonl", '{"text": "\\ud800"}\n' * 2, "FILE, line 1: a string holds half a character …"),
    "column twice": ("a.jsonl", '{"text": "a", "text": "b"}\n' * 2, "FILE, line 1: the key 'text' is there twice."),
    "not UTF-8": ("a.jsonl", b'{"text": ""}\n{"text": "\xe9"}\n', "FILE, line 2: not UTF-8 (byte 11 of the line). …"),
    "UTF-16": ("a.csv", "text\none\ntwo\n".encode("utf-16"), "FILE, line 1: not UTF-8 (byte 1 of the line). …"),
    "Latin text": ("a.txt", "one\ncafé\n".encode("latin-1"), "FILE, line 2: not UTF-8 (byte 4 of the line). …"),
    **{f"empty .{kind}": (f"a.{kind}", "", "FILE is empty.") for kind in ("jsonl", "json", "csv", "txt")},
    **{f"blank .{kind}": (f"a.{kind}", " \n\n\t\n", "FILE is empty.") for kind in ("jsonl", "json", "csv", "txt")},
    "empty .parquet": ("a.parquet", "", "FILE: Parquet file size is 0 bytes"),
    "no Parquet": ("a.parquet", "this is only text", "FILE: Parquet magic bytes not found in footer. …"),
    "long row": ("a.csv", "prompt,completion\na,b\nc,d,e\n", "FILE, line 3: 3 fields, but the header has 2."),
    "short row": ("a.csv", "prompt,completion\na,b\nc\n", "FILE, line 3: 1 fields, but the header has 2."),
    "empty field": ("a.csv", "prompt,completion\na,b\nc,\n", "FILE…, row 1: column 'completion' must be …, not null."),
    "field twice": ("a.csv", "text,text\na,b\n", "FILE: the column 'text' is there twice."),
    "header": ("a.csv", "prompt,completion\n", "FILE has a header and no rows."),
    "open quote": ("a.csv", 'prompt,completion\na,b\n"c,d\n', "FILE, line 3: not CSV: unexpected end of data."),
    "semicolons": ("a.csv", "prompt;text\na;b\nc;d\n", "FILE: no known shape has the columns prompt;text.\nA row is …"),
    "wrong extension": ("a.doc", "hello", "--dataset_name FILE: unknown extension; expected one of .jsonl, …"),
    "unknown columns": ("a.jsonl", '{"q": "a"}\n' * 2, "FILE: no known shape has the columns q.\n…accepted are:\n…"),
    "no completion": ("a.jsonl", '{"prompt": "a"}\n' * 2, "FILE: no known shape has the columns prompt.\n…"),
    "number as text": ("a.jsonl", '{"text": 1}\n{"text": 2}\n', "FILE…, row …: column 'text' must be a string, …"),
}
# The third row of a file whose first two are good, and what is said of it.
ROWS = {
    "null content": ([USER, {**ANSWER, "content": None}], ", turn 1: the content must be a string, not null."),
    "no content": ([{"role": "user"}, ANSWER], ", turn 0: the content must be a string, not null."),
    "unknown role": ([{**USER, "role": "wizard"}, ANSWER], ", turn 0: unknown role 'wizard'; known are system, …"),
    "missing role": ([{"content": "q"}, ANSWER], ", turn 0 has neither 'role' nor 'from': dict {'content': 'q'}."),
    "content in parts": ([{**USER, "content": [{"type": "text"}]}, ANSWER], ", turn 0: the content must be a string…"),
    "text": ("hello", " must be a list of turns, not str 'hello'."),
    "strings": (["a", 1], ", turn 0 must be an object, not str 'a'."),
    "one object": (USER, " must be a list of turns, not dict …"),
    "nothing": ([], " must be a list of turns, not list []."),
    "null": (None, " must be a list of turns, not null."),
    "no assistant turn": ([USER], " has no assistant turn, so there is nothing to learn."),
}
CONFIGS = {
    "broken": ("seed: [1,\n", "--config FILE, line 2, column 1: while parsing a flow node expected …"),
    "unknown key": ("seed: 1\nlearning_rte: 1\n", "--config FILE, line 2: unknown flag or key 'learning_rte'. …"),
    "list at the top": ("- seed\n", "--config FILE: expected 'name: value' lines, found a sequence."),
    "empty": ("", "--config FILE: expected 'name: value' lines, found nothing."),
    "key twice": ("seed: 1\nseed: 2\n", "--config FILE, line 2, column 1: the key 'seed' is there twice."),
    "nested": ("seed:\n  value: 1\n", "--config FILE, line 1: --seed: invalid int value: …"),
    "list for a number": ("seed: [1, 2]\n", "--config FILE, line 1: --seed: expected one value, found a list."),
    "text for a number": ("seed: one\n", "--config FILE, line 1: --seed: invalid int value: 'one'"),
    "number out of bounds": ("seed: -1\n", "--config FILE, line 1: --seed: expected a number of at least 0 …"),
    "not UTF-8": (b"output_dir: caf\xe9\n", "--config FILE: not YAML: 'utf-8' codec can't decode byte 0xe9 …"),
}
TEMPLATES = {
    "no turn": ("{{ eos_token }}", "DATA: --chat_template_path FILE shows none of the … answers, …"),
    "syntax": ("{% generation %}\n{% for %}", "--chat_template_path FILE, line 2: not Jinja: …"),
    "empty": ("", "--chat_template_path FILE is missing or empty. …"),
    "end outside": (TUNER_TEMPLATE.replace("+ eos_token", ""), "--chat_template_path FILE ends the answers with no …"),
    "fails": (TUNER_TEMPLATE + "{{ 1 / 0 }}", "…, row …: --chat_template_path FILE refused it: division by zero."),
    "two beginnings": ("{{ bos_token }}" + TUNER_TEMPLATE, "--chat_template_path FILE begins … two beginning …"),
    "not UTF-8": (b"caf\xe9", "--chat_template_path FILE cannot be read: …"),
}


@pytest.fixture(autouse=True)
def _quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def sequences(*flags):
    """What a recipe does up to its sequences."""
    new = [] if "--tokenizer_name_or_path" in flags else ["--vocab_size", "300"]
    argv = ["--dry_run", "--use_cpu", *new, "--output_dir", "nowhere/at/all", *map(str, flags)]
    args = tuner.parse_arguments(SFT, argv)
    run = tuner.open_run(args, tuner.SFT)
    rows = tuner.load_rows(run)
    return tuner.make_examples(run, rows, tuner.SFT(args, tuner.load_tokenizer(run, rows), Layout()))


@pytest.fixture
def refused(capfd):
    """Calls `sequences` and compares the message."""

    def check(message, file, *flags):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            tuner.run(lambda: sequences(*flags))
        shown = capfd.readouterr().err
        assert stop.value.code == 2
        assert "Traceback" not in shown
        pattern = re.escape(f"error: {message}".replace("FILE", str(file))).replace("…", ".*")
        assert re.fullmatch(pattern + "\n", shown, re.DOTALL), shown

    return check


@pytest.fixture
def good(tmp_path):
    (tmp_path / "good.jsonl").write_text(GOOD * 4)
    return tmp_path / "good.jsonl"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_good_file_passes(good, tmp_path):
    """Else every refusal below might be for another reason."""
    config = write(tmp_path / "a.yaml", "seed: 3\n")
    template = write(tmp_path / "a.jinja", TUNER_TEMPLATE)
    data = sequences("--dataset_name", good, "--config", config, "--chat_template_path", template)
    assert [report.rows for report in data.reports] == [3, 1]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("case", DATA)
def test_data(case, tmp_path, refused):
    name, content, message = DATA[case]
    file = write(tmp_path / name, content)
    refused(message, file, "--dataset_name", file)


@pytest.mark.parametrize("case", ROWS)
def test_row(case, tmp_path, refused):
    messages, reason = ROWS[case]
    file = write(tmp_path / "a.jsonl", GOOD * 2 + json.dumps({"messages": messages}) + "\n")
    refused(f"FILE…, row 2: column 'messages'{reason}", file, "--dataset_name", file)


OTHERS = {"int 3": 3, "null": None, "list ['a']": ["a"], "dict {'a': 1}": {"a": 1}}


@pytest.mark.parametrize(("shown", "value"), OTHERS.items())
def test_column_of_mixed_types(shown, value, tmp_path, refused):
    rows = "".join(json.dumps({"text": v}) + "\n" for v in ("one", "two", "three", value))
    file = write(tmp_path / "a.jsonl", rows)
    refused(f"FILE…, row 3: column 'text' must be a string, not {shown}.", file, "--dataset_name", file)


@pytest.mark.parametrize("case", CONFIGS)
def test_config(case, good, tmp_path, refused):
    content, message = CONFIGS[case]
    file = write(tmp_path / "a.yaml", content)
    refused(message, file, "--dataset_name", good, "--config", file)


@pytest.mark.parametrize("trained", [True, False], ids=["trained tokenizer", "loaded tokenizer"])
@pytest.mark.parametrize("case", TEMPLATES)
def test_template(case, trained, good, tmp_path, refused):
    content, message = TEMPLATES[case]
    file = write(tmp_path / "a.jinja", content)
    samples.small().save_pretrained(tmp_path / "tokenizer")
    flags = [] if trained else ["--tokenizer_name_or_path", tmp_path / "tokenizer"]
    message = message.replace("DATA", str(good))
    refused(message, file, "--dataset_name", good, "--chat_template_path", file, *flags)


FOLDERS = {
    "empty": ({}, "--dataset_name FILE: a folder must hold …; found none of them."),
    "of other files": ({"a.doc": "x"}, "--dataset_name FILE: a folder must hold …; found none of them."),
    "of several kinds": ({"a.jsonl": GOOD, "b.csv": "text\na\n"}, "…FILE: a folder must …several kinds (csv, json)."),
    "with a bad file": ({"a.jsonl": GOOD, "b.jsonl": "{"}, "FILE/b.jsonl, line 1, column 2: not JSON: …"),
    "of other columns": (
        {"a.jsonl": GOOD, "b.jsonl": '{"text": "a"}\n'},
        "FILE…, row …: column 'messages' must …, not null.",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(case, tmp_path, refused):
    files, message = FOLDERS[case]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        write(folder / name, content)
    refused(message, folder, "--dataset_name", folder)


def test_what_is_not_there(good, tmp_path, refused):
    near = good.with_name("god.jsonl")
    refused("--dataset_name FILE: no such file or folder. Did you mean good.jsonl?", near, "--dataset_name", near)
    refused("--dataset_name FILE: no such file or folder.", "/no/where.csv", "--dataset_name", "/no/where.csv")
    refused("--dataset_name FILE: …the Hub did not give it: …", "nobody/nothing", "--dataset_name", "nobody/nothing")
    config = write(tmp_path / "tiny.yaml", "seed: 3\n").with_name("tinny.yaml")
    refused("--config FILE: No such file or directory. Did you mean tiny.yaml?", config, "--config", config)
    refused("--config FILE: Is a directory.", tmp_path, "--config", tmp_path)
    template = ("--dataset_name", good, "--chat_template_path")
    refused("--chat_template_path FILE is neither 'chatml', 'bert', a Jinja file, …", "no.jinja", *template, "no.jinja")
    refused("--chat_template_path FILE has no tokenizer: …", tmp_path, *template, tmp_path)
    tokenizer = ("--dataset_name", good, "--tokenizer_name_or_path")
    refused("No tokenizer could be loaded from FILE: …", tmp_path, *tokenizer, tmp_path)
    refused("…FILE: no such folder.", "./nowhere", *tokenizer, "./nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_a_broken_tokenizer(content, good, tmp_path, refused):
    folder = tmp_path / "tokenizer"
    samples.small().save_pretrained(folder)
    write(folder / "tokenizer.json", content)
    flags = ["--dataset_name", good, "--tokenizer_name_or_path", folder]
    refused("No tokenizer could be loaded from FILE: …", folder, *flags)


def check_run(done, message, file):
    """One message; libraries may have had their say before it."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *_, before, shown = re.split("^error: ", done.stderr, flags=re.MULTILINE)
    assert str(file) not in before
    assert shown.startswith(message.split("…")[0].replace("FILE", str(file)))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bad JSON mid-file", "long row", "no Parquet"])
def test_data_as_its_user_sees_it(case, tmp_path):
    name, content, message = DATA[case]
    file = write(tmp_path / name, content)
    check_run(run_recipe("--dataset_name", file, "--output_dir", tmp_path / "run"), message, file)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["broken", "unknown key"])
def test_config_as_its_user_sees_it(case, tmp_path):
    content, message = CONFIGS[case]
    file = write(tmp_path / "a.yaml", content)
    check_run(run_recipe("--config", file), message, file)
