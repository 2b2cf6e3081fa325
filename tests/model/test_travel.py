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
auto, folder = sys.argv[1:]
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
assert not any(name == "tuner" or name.startswith("tuner.") for name, module in sys.modules.items() if module)
rows = torch.load(folder + "/rows.pt")
with torch.no_grad():
    gap = (model(**rows["inputs"]).logits - rows["logits"]).abs().max()
    assert gap <= 1e-5, gap  # products of a few numbers depend on how memory lies
if model.can_generate():
    assert torch.equal(model.generate(**rows["prompt"], max_new_tokens=5, do_sample=False), rows["tokens"])
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


@pytest.mark.parametrize(("auto", "build"), CASES, ids=[f"{auto}-{i}" for i, (auto, _) in enumerate(CASES)])
def test_it_loads_abroad(auto, build, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = scramble(build())
    model.tie_weights()
    ids = torch.randint(3, 61, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = {"prompt": dict(inputs), "inputs": inputs}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        rows["logits"] = model(**inputs).logits
    if model.can_generate():
        rows["tokens"] = model.generate(**rows["prompt"], max_new_tokens=5, do_sample=False)
    model.save_pretrained(tmp_path)
    torch.save(rows, tmp_path / "rows.pt")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # where transformers copies the code to
    result = subprocess.run(
        [sys.executable, "-c", ABROAD, auto, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().startswith("transformers_modules.")
