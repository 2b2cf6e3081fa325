"""PEFT with no word on targets, prompt methods on every shape, and an adapter's folder."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from tests.ecosystem.families import DECODERS, ENCODERS, MIXTURES, PAIRS, model, token_ids

peft = pytest.importorskip("peft")

TASKS = {
    "CAUSAL_LM": ("AutoModelForCausalLM", (*DECODERS, *MIXTURES)),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", PAIRS),
    "SEQ_CLS": ("AutoModelForSequenceClassification", (*DECODERS, *ENCODERS)),
    "TOKEN_CLS": ("AutoModelForTokenClassification", (*DECODERS, *ENCODERS)),
    "QUESTION_ANS": ("AutoModelForQuestionAnswering", (*DECODERS, *ENCODERS)),
    "FEATURE_EXTRACTION": ("AutoModel", ENCODERS),
}
CASES = [(family, task) for task, (_, families) in TASKS.items() for family in families]
METHODS = {
    "LORA": {"r": 2}, "IA3": {}, "ADALORA": {"init_r": 2, "total_step": 9}, "LN_TUNING": {},
    "OFT": {"r": 4, "oft_block_size": 0}, "LOHA": {"r": 2}, "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 8},
}  # fmt: skip
PROMPTS = {
    "PROMPT_TUNING": peft.PromptTuningConfig,
    "P_TUNING": peft.PromptEncoderConfig,
    "PREFIX_TUNING": peft.PrefixTuningConfig,
}


def batch(task: str) -> dict[str, Any]:
    ids = token_ids(2, 6)
    labels = {
        "SEQ_CLS": {"labels": torch.tensor([0, 1])},
        "TOKEN_CLS": {"labels": ids % 2},
        "QUESTION_ANS": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 3])},
        "FEATURE_EXTRACTION": {},
    }
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **labels.get(task, {"labels": ids})}


def learn(made: torch.nn.Module, task: str) -> list[str]:
    """One step; the parameters that have a gradient."""
    output = made.train()(**batch(task))
    loss = output.last_hidden_state.square().mean() if task == "FEATURE_EXTRACTION" else output.loss
    loss.backward()
    return [name for name, p in made.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)]


@pytest.mark.tool("PEFT 0.21", "LoRA without target_modules")
@pytest.mark.parametrize(("family", "task"), [case for case in CASES if case[0] != "mixtral"])  # PEFT finds none there
def test_an_adapter_finds_its_targets(family, task):
    made = peft.get_peft_model(model(family, TASKS[task][0]), peft.LoraConfig(task_type=task, r=2))
    targets = {"bert": {"query", "value"}}.get(family, {"q_proj", "v_proj"})
    assert made.peft_config["default"].target_modules == targets
    assert any("lora_B" in name for name in learn(made, task))


@pytest.mark.tool("PEFT 0.21", "other methods without target_modules")
@pytest.mark.parametrize("family", ["llama", "tuner decoder", "tuner encoder", "bart", "tuner seq2seq"])
@pytest.mark.parametrize("method", METHODS)
def test_other_methods_find_theirs(family, method):
    task = {"tuner encoder": "SEQ_CLS", "llama": "CAUSAL_LM", "tuner decoder": "CAUSAL_LM"}.get(family, "SEQ_2_SEQ_LM")
    settings = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(method)](task_type=task, **METHODS[method])
    made = peft.get_peft_model(model(family, TASKS[task][0]), settings)
    assert made.peft_config["default"].target_modules
    assert any("score" not in name for name in learn(made, task))


@pytest.mark.tool("PEFT 0.21", "prompt and prefix methods")
@pytest.mark.parametrize(("family", "task"), CASES)
@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_are_learnt(family, task, method, tmp_path):
    if task == "TOKEN_CLS" and method != "PREFIX_TUNING":
        pytest.skip("PEFT gives the prompt's tokens no labels, of any family")
    made = model(family, TASKS[task][0])
    made = peft.get_peft_model(made, PROMPTS[method](task_type=task, num_virtual_tokens=3))
    assert any("prompt_encoder" in name for name in learn(made, task))
    made.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(model(family, TASKS[task][0]), tmp_path).eval()
    with torch.no_grad():
        first, second = (each(**batch(task)) for each in (made, again))
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"position_embedding_type": "relative"},
        {"position_embedding_type": "alibi"},
        {"position_embedding_type": "learned"},
        {"position_embedding_type": "learned", "position_offset": 1, "skip_padding_positions": True},
        {"sliding_window": 3},
        {"attention_type": "performer"},
        {"attention_type": "linformer", "linformer_k": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prefix_is_what_every_token_of_an_encoder_sees(fields, attention):
    """In a single layer, keys and values of the beginning of a row make of the rest what the whole row makes of it."""
    made = model("tuner encoder", "AutoModel", num_hidden_layers=1, **fields)
    made.set_attn_implementation(attention)
    ids, mask = token_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 0] = 0
    cache = DynamicCache()
    with torch.no_grad():
        made(ids[:, :4], mask[:, :4], past_key_values=cache)
        whole = made(ids, mask).last_hidden_state[:, 4:]
        found = made(ids[:, 4:], mask, past_key_values=cache).last_hidden_state
    torch.testing.assert_close(found, whole)


@pytest.mark.tool("PEFT 0.21", "an adapter's folder")
@pytest.mark.parametrize(
    ("family", "auto"),
    [
        ("llama", "CausalLM"),
        ("tuner decoder", "CausalLM"),
        ("tuner encoder", "MaskedLM"),
        ("tuner seq2seq", "Seq2SeqLM"),
    ],
)
def test_the_folder_of_an_adapter_has_no_code(family, auto, tmp_path):
    made = model(family, f"AutoModelFor{auto}")
    made.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False))
    made.save_pretrained(tmp_path / "adapter")
    written = {path.name for path in (tmp_path / "adapter").iterdir()} - {"generation_config.json"}
    assert written == {"adapter_config.json", "adapter_model.safetensors"}
    again = model(family, f"AutoModelFor{auto}")
    again.load_adapter(str(tmp_path / "adapter"))
    ids = {"input_ids": token_ids(1, 5), **({"decoder_input_ids": token_ids(1, 4)} if "seq2seq" in family else {})}
    with torch.no_grad():
        assert torch.equal(made(**ids).logits, again.eval()(**ids).logits)
    made.delete_adapter("default")
    made.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "config.json").exists()
    assert (tmp_path / "whole" / "stack.py").exists() == family.startswith("tuner")


@pytest.mark.slow
def test_peft_is_not_imported_with_the_model():
    check = "import sys, tuner.model; tuner.model.TunerDecoderConfig().to_dict(); sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
