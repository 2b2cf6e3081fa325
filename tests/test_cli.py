"""The `tuner` command as its user meets it."""

import os
import pty
import subprocess
import sys

import pytest

from tests.processes import ROOT, environment, run_fresh, run_python
from tests.text.samples import train_bpe_tokenizer
from tuner import cli
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that was never trained: what it says is noise, how it says it is real."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe_tokenizer(["hello there, how are you today"] * 50, 300)
    config = TunerDecoderConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    TunerDecoderForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def call(*words, stdin=""):
    return run_python("-m", "tuner.cli", *words, stdin=stdin, timeout=120)


def test_help_lists_the_commands():
    done = run_fresh("-m", "tuner.cli", "--help")
    assert done.returncode == 0 and all(name in done.stdout for name in ("chat", "generate", "doctor"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "/no/such/folder", "hi"], "no such folder"),
        (["generate", "builtin:nope", "hi"], "builtin:smollm2-135m-instruct"),
        (["chat", "builtin:smolm2-135m-instruct"], "Did you mean"),
    ],
)
def test_mistakes_are_one_message(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


ORDERS = [
    ["MODEL", "--temperature", "0", "one", "two"],
    ["MODEL", "one", "--temperature", "0", "two"],
    ["--temperature", "0", "MODEL", "one", "two"],
    ["--temperature=0", "MODEL", "one", "--raw", "two"],
    ["MODEL", "one", "two", "--temperature", "0"],
    ["--raw", "MODEL", "--temperature", "0", "one", "--seed", "1", "two"],
]


@pytest.fixture
def answered(monkeypatch):
    """Calls `tuner`, and gives what `tuner generate` was asked."""
    seen = []
    monkeypatch.setattr("tuner.commands.generate.main", seen.append)

    def call_main(*words):
        seen.clear()
        cli.main(["generate", *words])
        return seen[0]

    return call_main


@pytest.mark.parametrize("words", ORDERS, ids=" ".join)
def test_options_and_prompts_in_any_order(answered, words):
    args = answered(*words)
    assert (args.model, args.prompt, args.temperature) == ("MODEL", ["one", "two"], 0)
    assert args.raw == ("--raw" in words)


def test_prompts_that_look_like_options(answered):
    assert answered("MODEL", "--seed", "1", "--", "-5 degrees", "--raw").prompt == ["-5 degrees", "--raw"]
    assert answered("MODEL").prompt == []
    assert answered("MODEL", "--seed", "1", "").prompt == [""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "required: MODEL"),
        (["generate", "--seed", "1"], "required: MODEL"),
        (["generate", "x", "--temperature", "nan"], "--temperature: expected a number of at least 0, not nan"),
        (["generate", "x", "--temperature", "-1"], "--temperature: expected a number of at least 0, not -1"),
        (["generate", "x", "--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
        (["generate", "x", "--top_p", "2"], "--top_p: expected a number of at least 0 and of at most 1, not 2"),
        (["generate", "x", "--top_p", "0"], "--top_p must be above 0"),
        (["generate", "x", "--top_k", "-1"], "--top_k: expected a number of at least 0, not -1"),
        (["generate", "x", "--max_new_tokens", "0"], "--max_new_tokens: expected a number of at least 1, not 0"),
        (["generate", "x", "--seed", "-1"], "--seed: expected a number of at least 0"),
        (["generate", "x", "--seed", str(2**32)], "--seed: expected a number of at least 0 and of at most 4294967295"),
        (["generate", "x", "--nope", "1"], "unrecognized arguments: --nope"),
        (["plan", "tiny", "--context", "0"], "--context: expected a number of at least 1, not 0"),
        (["plan", "tiny", "--processes", "x"], "--processes: invalid int value: 'x'"),
        (["convert", "x"], "required: --to"),
        (["convert", "x", "--to", "llama"], "required: OUT"),
        (["doctor", "x"], "unrecognized arguments: x"),
        (["frobnicate"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
)
def test_odd_values_are_one_message(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_loads_no_torch(name):
    check = "import atexit, sys; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))"
    code = f"{check}\nfrom tuner.cli import main\nmain([{name!r}, '--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False")
    assert done.stdout.startswith(f"usage: tuner {name}")


@pytest.mark.slow
def test_generate_answers_each_prompt_and_repeats_itself(model):
    first = call("generate", model, "hello", "there", "--seed", "3", "--max_new_tokens", "5")
    assert first.returncode == 0, first.stderr
    again = call("generate", model, "--seed", "3", "--max_new_tokens", "5", stdin="hello\nthere\n")
    assert first.stdout == again.stdout and len(first.stdout.splitlines()) >= 2
    raw = call("generate", model, "--raw", "--temperature", "0", "--max_new_tokens", "5", "hello")
    assert raw.returncode == 0, raw.stderr
    bad = call("generate", model, "hello", "--top_p", "2")
    assert bad.returncode == 2 and "--top_p" in bad.stderr


@pytest.mark.slow
def test_chat_in_a_terminal(model):
    """A real terminal: prompts, an answer, commands, a conversation longer than the model can read, and the end."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner.cli", "chat", str(model), "--max_new_tokens", "8", "--seed", "1"],
        cwd=ROOT, env=environment(TERM="xterm"), stdin=there, stdout=there, stderr=there, close_fds=True,
    )  # fmt: skip
    os.close(there)
    said = ["hello", "/nope", "/reset", *["how are you today, my friend"] * 4, "/quit"]
    os.write(here, "".join(f"{line}\n" for line in said).encode())
    shown = b""
    try:
        while chunk := os.read(here, 4096):
            shown += chunk
    except OSError:  # the terminal is gone when its program is
        pass
    text = shown.decode(errors="replace")
    assert process.wait(timeout=60) == 0, text
    assert "There is no /nope" in text and "forgotten" in text and text.count("model") >= 5


@pytest.mark.slow
def test_doctor_examines_this_machine():
    done = call("doctor")
    assert done.returncode == 0, done.stderr
    for text in ("transformers", "GFLOP/s", "memory", "bf16"):
        assert text in done.stdout
