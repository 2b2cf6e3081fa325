"""The `tuner` command as its user meets it."""

import os
import pty
import subprocess
import sys

import pytest

from tests.processes import ROOT, environment, run_fresh, run_python
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.text.train_tokenizer import train_bpe_tokenizer


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
        (["frobnicate"], "invalid choice"),
        (["generate", "x", "hi", "--max_new_tokens", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_message(words, message):
    done = call(*words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_generate_answers_each_prompt_and_repeats_itself(model):
    first = call("generate", model, "hello", "there", "--seed", "3", "--max_new_tokens", "5")
    assert first.returncode == 0, first.stderr
    again = call("generate", model, "--seed", "3", "--max_new_tokens", "5", stdin="hello\nthere\n")
    assert first.stdout == again.stdout and len(first.stdout.splitlines()) >= 2
    raw = call("generate", model, "hello", "--raw", "--temperature", "0", "--max_new_tokens", "5")
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
