"""`tuner generate --prompts`: every row gets its answer, and a run that was killed ends as one that was not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.helpers import SHAPE, scramble
from tests.processes import run_python
from tests.text.samples import conversations, small
from tuner import cli
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM, TunerSeq2SeqConfig
from tuner.model import TunerSeq2SeqForConditionalGeneration as OurPair

ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**SHAPE, "vocab_size": 1000, "max_position_embeddings": 256}
SAMPLED = ("--max_new_tokens", "6", "--batch_size", "3", "--seed", "7", "--temperature", "1.5")
GREEDY = ("--max_new_tokens", "6", "--temperature", "0")
# Kills the process with its K-th line, which is written by half.
KILLED = """
import os, signal, sys
import tuner.loading.prompt_file as module
left, own = {left}, module._write
def write(side, line):
    global left
    left -= 1
    if left:
        return own(side, line)
    side.write(b'{{"row": 1, "comp')
    side.flush()
    os.kill(os.getpid(), signal.SIGKILL)
module._write = write
from tuner.cli import main
main(sys.argv[1:])
"""


def save(model: Any, folder: Path) -> Path:
    scramble(model).save_pretrained(folder)
    small().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(TunerDecoderForCausalLM(TunerDecoderConfig(**WIDE, **ENDS)), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(
        OurPair(TunerSeq2SeqConfig(encoder={**WIDE}, decoder={**WIDE, **ENDS}, **ENDS)), tmp_path_factory.mktemp("pair")
    )


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Eleven real questions, and what belongs to them."""
    said = [turns[0]["content"] for turns in conversations(40) if len(turns[0]["content"]) < 300][:11]
    return jsonl(tmp_path / "asked.jsonl", [{"id": f"ä{n}", "prompt": text, "n": n} for n, text in enumerate(said)])


def generate(model: Path, file: Path, *flags: str, output: str = "out.jsonl") -> list[dict[str, Any]]:
    where = file.with_name(output)
    cli.main(["generate", str(model), "--prompts", str(file), "--output", str(where), *flags])
    assert sorted(p.name for p in file.parent.glob(f"{output}*")) == [output], "nothing is left beside it"
    return rows_of(where)


def refused(capsys: Any, *words: str | Path) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", *map(str, words)])
    assert stop.value.code == 2
    return str(capsys.readouterr().err)


def test_rows_come_back_in_their_order_with_what_the_command_answers(folder, asked, capsys):
    found = generate(folder, asked, *GREEDY)
    assert [{k: v for k, v in row.items() if k != "completion"} for row in found] == rows_of(asked)
    assert "11 prompts: the column 'prompt', by the chat template." in capsys.readouterr().err
    cli.main(["generate", str(folder), *GREEDY, *(row["prompt"] for row in found[:3])])
    assert capsys.readouterr().out == "".join(f"{row['completion']}\n" for row in found[:3])
    assert len({row["completion"] for row in found}) > 2


@pytest.mark.parametrize("left", [1, 2, 5, 12])
def test_a_killed_run_ends_as_one_that_was_not(folder, asked, left):
    """Killed with a line half written: the first of all, which says what of, or an answer's."""
    whole = generate(folder, asked, *SAMPLED, output="whole.jsonl")
    words = ("generate", str(folder), "--prompts", str(asked), "--output", str(asked.with_name("out.jsonl")), *SAMPLED)
    done = run_python("-c", KILLED.format(left=left), *words)
    assert done.returncode == -9, done.stderr
    part = asked.with_name("out.jsonl.part")
    assert part.read_bytes().count(b"\n") == left - 1 and not asked.with_name("out.jsonl").exists()
    assert generate(folder, asked, *SAMPLED) == whole
    assert asked.with_name("out.jsonl").read_bytes() == asked.with_name("whole.jsonl").read_bytes()


def test_what_is_answered_is_not_asked_again(folder, asked, capsys):
    run_python(
        "-c", KILLED.format(left=8), "generate", str(folder), "--prompts", str(asked),
        "--output", str(asked.with_name("out.jsonl")), *GREEDY,
    )  # fmt: skip
    part = asked.with_name("out.jsonl.part")
    lines = part.read_text().splitlines()[:7]
    lines[1] = json.dumps({**json.loads(lines[1]), "completion": "by hand"})
    part.write_text("\n".join([*lines, '{"ro']))
    found = generate(folder, asked, *GREEDY)
    assert found[json.loads(lines[1])["row"]]["completion"] == "by hand"
    assert "6 are answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--max_new_tokens", "7"], "max_new_tokens: 6 there, 7 here"),
        (["--batch_size", "4"], "batch_size: 3 there, 4 here"),
        (["--system", "Be brief."], "system: None there, Be brief. here"),
        ("file", "prompts: "),
        ("weights", "weights: "),
    ],
)
def test_another_run_does_not_go_on_with_it(folder, asked, change, said, capsys):
    words = [folder, "--prompts", asked, "--output", asked.with_name("out.jsonl"), *SAMPLED]
    run_python("-c", KILLED.format(left=4), "generate", *map(str, words))
    kept = asked.with_name("out.jsonl.part").read_bytes()
    if change == "file":
        with asked.open("a") as file:
            file.write('{"prompt": "one more"}\n')
    elif change == "weights":
        os.utime(folder / "model.safetensors")
    else:
        words += change
    message = refused(capsys, *words)
    assert "was begun otherwise" in message and said in message and message.count("there, ") == 1
    assert asked.with_name("out.jsonl.part").read_bytes() == kept


def test_two_at_once_and_a_damaged_file_are_refused(folder, asked, capsys):
    import fcntl

    words = [folder, "--prompts", asked, "--output", asked.with_name("out.jsonl"), *GREEDY]
    part = asked.with_name("out.jsonl.part")
    with part.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "being written by another process" in refused(capsys, *words)
    part.write_bytes(b"not JSON\n")
    assert "is damaged. Delete it" in refused(capsys, *words)


def test_ctrl_c_keeps_what_is_answered(folder, asked, monkeypatch, capsys):
    import tuner.loading.prompt_file as module

    whole = generate(folder, asked, *SAMPLED, output="whole.jsonl")
    own = module.generate_texts

    def stopped(*args, **how):
        for number, pair in enumerate(own(*args, **how)):
            if number == 4:
                raise KeyboardInterrupt
            yield pair

    words = ["generate", str(folder), "--prompts", str(asked), "--output", str(asked.with_name("out.jsonl")), *SAMPLED]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(module, "generate_texts", stopped)
        cli.main(words)
    assert stop.value.code == 130 and "4 of 11 answers are in" in capsys.readouterr().err
    assert generate(folder, asked, *SAMPLED) == whole


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"messages": TURNS}, []),
        ({"prompt": TURNS, "tag": "x"}, []),
        ({"prompt": "Hello", "system": "Be brief."}, []),
        ({"prompt": "Hello"}, ["--system", "Be brief."]),
        ({"messages": TURNS[1:]}, ["--system", "Be brief."]),
        ({"messages": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hello"}]}, []),
    ],
)
def test_every_way_to_write_a_conversation(folder, tmp_path, row, flags, capsys):
    found = generate(folder, jsonl(tmp_path / "asked.jsonl", [row]), *GREEDY, *flags)
    capsys.readouterr()
    cli.main(["generate", str(folder), *GREEDY, "--system", "Be brief.", "Hello"])
    assert found == [{**row, "completion": capsys.readouterr().out[:-1]}]


def test_history_comes_before_the_prompt(folder, tmp_path):
    beside = {"prompt": "And you?", "history": [["Hello", "Hi"]]}
    turns = [("user", "Hello"), ("assistant", "Hi"), ("user", "And you?")]
    whole = {"prompt": [{"role": role, "content": text} for role, text in turns]}
    (one,) = generate(folder, jsonl(tmp_path / "a.jsonl", [beside]), *GREEDY, output="a.out")
    (other,) = generate(folder, jsonl(tmp_path / "b.jsonl", [whole]), *GREEDY, output="b.out")
    assert one["completion"] == other["completion"]


@pytest.mark.parametrize(
    ("name", "text", "flags"),
    [
        ("asked.txt", "Once upon\na time\n", []),
        ("asked.csv", 'n,text\n1,Once upon\n2,"a time"\n', []),
        ("asked.jsonl", '{"prompt": "Once upon"}\n{"prompt": "a time"}\n', ["--raw"]),
    ],
)
def test_plain_text_is_continued_as_it_is(folder, tmp_path, name, text, flags, capsys):
    (tmp_path / name).write_text(text)
    found = generate(folder, tmp_path / name, *GREEDY, *flags)
    assert "as it is." in capsys.readouterr().err
    cli.main(["generate", str(folder), *GREEDY, "--raw", "Once upon", "a time"])
    assert capsys.readouterr().out == "".join(f"{row['completion']}\n" for row in found)


def test_parquet_in_and_json_lines_out(folder, asked):
    from datasets import Dataset

    path = asked.with_suffix(".parquet")
    Dataset.from_list(rows_of(asked)).to_parquet(str(path))
    assert generate(folder, path, *GREEDY, output="p.jsonl") == generate(folder, asked, *GREEDY, output="j.jsonl")


@pytest.mark.parametrize("column", ["prompt", "source", "text"])
def test_an_encoder_decoder_reads_a_text(pair, tmp_path, column, capsys):
    """Greedy where nothing is said."""
    file = jsonl(tmp_path / "asked.jsonl", [{column: "How are you today?"}, {column: "Fine."}])
    found = generate(pair, file, "--max_new_tokens", "6")
    assert "as it is." in capsys.readouterr().err
    cli.main(["generate", str(pair), *GREEDY, "How are you today?", "Fine."])
    assert capsys.readouterr().out == "".join(f"{row['completion']}\n" for row in found)
    with pytest.raises(SystemExit):
        cli.main(["chat", str(pair)])
    assert "nothing to chat" in capsys.readouterr().err


GOOD = {"prompt": "Hello"}


@pytest.mark.parametrize(
    ("row", "flags", "said"),
    [
        ({"question": "x"}, [], "row 0: has none of the columns prompt, messages, text, source; it has question."),
        ({"prompt": "x", "completion": "y"}, [], "row 0: has a column 'completion'"),
        ({"prompt": "word " * 400}, [], "row 0: its prompt is "),
        ({"prompt": ["x"]}, [], "row 0: column 'prompt', turn 0 must be an object"),
        ({"prompt": 3}, [], "row 0: column 'prompt' must be a list of turns, not int 3"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "x"}]}, [], "ends with the assistant's turn"),
        ({"messages": TURNS}, ["--system", "Other."], "begins with a system message, and there is another"),
        ({"messages": TURNS}, ["--raw"], "row 0: column 'messages' must be a string"),
        ({"text": "x"}, ["--system", "Be brief."], "--system is for the chat template"),
        ({"prompt": "x", "images": ["a.png"]}, [], "the column 'images' is not supported"),
    ],
)
def test_rows_that_cannot_be_answered(folder, tmp_path, row, flags, said, capsys):
    file = jsonl(tmp_path / "asked.jsonl", [row, GOOD])
    message = refused(capsys, folder, "--prompts", file, "--output", tmp_path / "out.jsonl", *flags)
    assert str(file) in message and said in message
    assert not list(tmp_path.glob("out*"))


def test_a_later_row_is_named_by_its_number(folder, tmp_path, capsys):
    file = jsonl(tmp_path / "asked.jsonl", [GOOD, GOOD, {"prompt": None}])
    words = (folder, "--prompts", file, "--output", tmp_path / "out.jsonl")
    assert "asked.jsonl, row 2: column 'prompt' must be a list of turns, not null" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hi", "--prompts", "FILE", "--output", "OUT"], "give one of them"),
        (["--prompts", "FILE"], "--prompts needs --output"),
        (["hi", "--output", "OUT"], "--output goes with --prompts"),
        (["hi", "--batch_size", "2"], "--batch_size goes with --prompts"),
        (["--prompts", "FILE", "--output", "FILE"], "is there already"),
        (["--prompts", "FILE", "--output", "/no/such/out.jsonl"], "there is no folder /no/such"),
        (["--prompts", "FILES", "--output", "OUT"], "no such file. Did you mean"),
        (["--prompts", "OTHER", "--output", "OUT"], "unknown extension"),
        (["--prompts", "FILE", "--output", "OUT", "--batch_size", "0"], "at least 1"),
        (["hi", "--raw", "--system", "x"], "--system is for the chat template, which --raw leaves out"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, words, said, capsys):
    """Before a model is loaded: this one is not there."""
    file = jsonl(tmp_path / "asked.jsonl", [GOOD])
    (tmp_path / "asked.xml").write_text("x")
    names = {"FILE": file, "FILES": f"{file}s", "OTHER": tmp_path / "asked.xml", "OUT": tmp_path / "out.jsonl"}
    assert said in refused(capsys, "/no/such/model", *(names.get(word, word) for word in words))
