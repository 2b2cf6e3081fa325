"""A saved folder carries the model's code: it loads where `tuner` is not installed, with the same logits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.model.helpers import scramble
from tests.model.test_shapes import decoder, encoder, pair

ABROAD = """
import sys
sys.modules["tuner"] = None  # importing it fails
import torch, transformers
for auto, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    assert not any(name == "tuner" or name.startswith("tuner.") for name, module in sys.modules.items() if module)
    rows = torch.load(folder + "/rows.pt")
    with torch.no_grad():
        gap = (model(**rows["inputs"]).logits - rows["logits"]).abs().max()
        assert gap <= 1e-5, (folder, gap)  # products of a few numbers depend on how memory lies
    if model.can_generate():
        found = model.generate(**rows["prompt"], max_new_tokens=5, do_sample=False)
        assert torch.equal(found, rows["tokens"]), folder
    print(type(model).__module__)
"""
CASES = [
    ("AutoModelForCausalLM", lambda: decoder(num_local_experts=3, attention_bias=True)),
    ("AutoModelForCausalLM", lambda: decoder(attention_type="performer", norm_type="layernorm")),
    ("AutoModelForSequenceClassification", lambda: AutoModelForSequenceClassification.from_config(decoder().config)),
    ("AutoModelForTokenClassification", lambda: AutoModelForTokenClassification.from_config(encoder().config)),
    ("AutoModelForMaskedLM", lambda: encoder(position_embedding_type="relative")),
    ("AutoModelForSeq2SeqLM", lambda: pair(position_embedding_type="alibi")),
]


def save(model, folder):
    """The model, and beside it inputs with what it makes of them."""
    scramble(model).tie_weights()
    ids = torch.randint(3, 61, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = {"prompt": dict(inputs), "inputs": inputs}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        rows["logits"] = model(**inputs).logits
    if model.can_generate():
        rows["tokens"] = model.generate(**rows["prompt"], max_new_tokens=5, do_sample=False)
    model.save_pretrained(folder)
    torch.save(rows, folder / "rows.pt")


@pytest.mark.slow
def test_they_load_abroad(tmp_path, monkeypatch):
    """One new process loads all in turn: its imports take longer than the rest."""
    torch.manual_seed(0)
    words = []
    for number, (auto, build) in enumerate(CASES):
        folder = tmp_path / f"model{number}"
        save(build(), folder)
        words += [auto, str(folder)]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # where transformers copies the code to
    result = subprocess.run(
        [sys.executable, "-c", ABROAD, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    shown = result.stdout.split()
    assert len(shown) == len(CASES) and all(name.startswith("transformers_modules.") for name in shown)
