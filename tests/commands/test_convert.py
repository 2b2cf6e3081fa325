"""`tuner convert` from the command line: out, in, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.model.helpers import tiny_decoder
from tests.processes import run_python
from tests.text.samples import train_bpe_tokenizer
from tuner import cli
from tuner.loading.checkpoints import resolve
from tuner.loading.conversion import convert
from tuner.text.chat import generation_prompt


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "tuner.cli", "convert", *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder as our trainer leaves it: model, tokenizer with a chat template, generation settings."""
    folder = tmp_path_factory.mktemp("convert") / "run"
    tokenizer = train_bpe_tokenizer(["hello there", "how are you"] * 9, vocab_size=280)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    model = tiny_decoder(vocab_size=len(tokenizer), use_qk_norm=False, eos_token_id=tokenizer.eos_token_id)
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_out_and_in_again(run, tmp_path):
    """Plain transformers reads what goes out; what comes in again is the same to the bit."""
    done = command(str(run), "--to", "llama", str(tmp_path / "llama"))
    assert done.returncode == 0, done.stderr
    assert "TunerDecoderForCausalLM -> LlamaForCausalLM" in done.stdout
    check = """
import sys; sys.modules["tuner"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(model).__name__ == "LlamaForCausalLM" and model.generation_config.temperature == 0.5
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False).startswith("hello")
"""
    subprocess.run([sys.executable, "-c", check, str(tmp_path / "llama")], check=True, cwd=tmp_path)
    assert not list((tmp_path / "llama").glob("*.py"))
    back = command(str(tmp_path / "llama"), "--to", "tuner", str(tmp_path / "back"))
    assert back.returncode == 0, back.stderr
    one, two = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (run, tmp_path / "back"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_neighbour_is_left_alone(run, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "kept.txt").write_text("mine")
    convert(str(run), "llama", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
    assert (tmp_path / "out.partial" / "kept.txt").read_text() == "mine"


def test_dtype_is_kept(run, tmp_path):
    AutoModelForCausalLM.from_pretrained(run, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    convert(str(tmp_path / "half"), "llama", tmp_path / "out")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen3", "cannot become qwen3: use_qk_norm False of a tuner_decoder model has no counterpart in a qwen3 one."),
        ("bert", "cannot become bert: a TunerDecoderForCausalLM has no counterpart in a bert model."),
        ("lama", "--to lama: there are tuner, llama"),
    ],
)
def test_what_cannot_be_is_one_message(run, tmp_path, family, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(run), "--to", family, str(tmp_path / "out")])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(run), "--to", "llama", str(tmp_path)])
    assert stop.value.code == 2 and "holds something already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.slow
def test_minilm(tmp_path):
    """A published encoder: the sentence embeddings of all-MiniLM-L6-v2."""
    path, _ = resolve("builtin:minilm-l6")
    convert("builtin:minilm-l6", "tuner", tmp_path / "ours")
    convert(str(tmp_path / "ours"), "bert", tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply on Monday."]
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    found = []
    for folder in (path, tmp_path / "ours", tmp_path / "bert"):
        model = AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            states = model(**rows).last_hidden_state
        mask = rows["attention_mask"][..., None]
        found.append(torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1)))
    assert type(AutoModel.from_pretrained(tmp_path / "ours")).__name__ == "TunerEncoderModel"
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)
    # sentence-transformers finds what it had beside the weights: mean pooling, normalisation, 256 tokens.
    beside = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json")
    for file in beside:
        for folder in ("ours", "bert"):
            assert (tmp_path / folder / file).read_bytes() == (Path(path) / file).read_bytes()
    near, far = float(found[1][0] @ found[1][1]), float(found[1][0] @ found[1][2])
    assert near > 0.6 > 0.2 > far


@pytest.mark.long
def test_smollm2_comes_in_from_its_gguf_and_goes_out(tmp_path):
    convert("builtin:smollm2-135m-instruct", "tuner", tmp_path / "ours")
    convert(str(tmp_path / "ours"), "llama", tmp_path / "llama")
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tmp_path / "llama"),
        LlamaForCausalLM.from_pretrained(tmp_path / "llama"),
    )
    prompt = generation_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :])
