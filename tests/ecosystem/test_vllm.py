"""A saved decoder in vLLM, by its transformers backend and the code in the folder: the same greedy tokens; and PPO with
completions that vLLM writes.

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


ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
PPO = (
    "--rollout vllm --max_steps 3 --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --response_length 16 "
    "--learning_rate 1e-2 --eval_strategy no --report_to none"
)


def saved(folder, shape):
    tokenizer, (config, kind) = samples.small(), KINDS[shape]
    marks = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    model = kind(config(vocab_size=len(tokenizer), **SIZE, **marks)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.tool("vLLM 0.27", "greedy tokens through its transformers backend")
@pytest.mark.parametrize("shape", KINDS)
def test_greedy_tokens(shape, tmp_path):
    model, tokenizer = saved(tmp_path / "model", shape)
    ids = tokenizer("hello there, how are you", return_tensors="pt")["input_ids"]
    ours = model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
    prompt, answer = json.dumps(ids[0].tolist()), tmp_path / "tokens.json"
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "vllm_worker.py", tmp_path / "model", prompt, answer],
        env=ENVIRONMENT,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(answer.read_text()) == ours


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "lora"])
def test_ppo_learns_from_what_it_writes(adapter, tmp_path):
    """It has the new weights at every update: what it samples with (bfloat16) is what the policy says, where the
    policy is far from what it began as."""
    saved(tmp_path / "model", "control")
    prompts = [{"text": f"hello {word} there"} for word in ["how", "are", "you", "hello", "what", "is", "it"] * 8]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "rewards.py").write_text(
        "def short(completions, **_):\n    return [-len(c) / 10 for c in completions]\n"
    )
    flags = [
        "--model_name_or_path", tmp_path / "model", "--dataset_name", tmp_path / "prompts.jsonl",
        "--reward_funcs", f"{tmp_path}/rewards.py:short", "--output_dir", tmp_path / "run", *PPO.split(),
        *(["--use_peft"] if adapter else []),
    ]  # fmt: skip
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "vllm_ppo.py", ROOT / "recipes" / "ppo.py", *flags],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    drift = [entry["rollout/drift"] for entry in log if "rollout/drift" in entry]
    kl = [entry["objective/kl"] for entry in log if "objective/kl" in entry]
    assert len(drift) == 3 and all(0 < found < 0.15 for found in drift), drift
    assert kl[-1] > 1, kl
