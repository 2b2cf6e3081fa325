"""A saved decoder in vLLM, by its transformers backend and the code in the folder: the same greedy tokens.

vLLM has an environment of its own (`make test-vllm`): its wheels ask for an older transformers than ours, which is put
over it there.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.processes import ROOT
from tests.text import samples
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
pytestmark = [
    pytest.mark.suite,
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM has an environment of its own: make test-vllm"),
]
SIZE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
KINDS = {"decoder": (TunerDecoderConfig, TunerDecoderForCausalLM), "control": (LlamaConfig, LlamaForCausalLM)}


@pytest.mark.tool("vLLM 0.32", "greedy tokens through its transformers backend")
@pytest.mark.parametrize("shape", KINDS)
def test_greedy_tokens(shape, tmp_path):
    tokenizer, (config, kind) = samples.small(), KINDS[shape]
    marks = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    model = kind(config(vocab_size=len(tokenizer), **SIZE, **marks)).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    ids = tokenizer("hello there, how are you", return_tensors="pt")["input_ids"]
    ours = model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
    prompt, answer = json.dumps(ids[0].tolist()), tmp_path / "tokens.json"
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "vllm_worker.py", tmp_path / "model", prompt, answer],
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(answer.read_text()) == ours
