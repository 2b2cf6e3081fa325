"""TRL's trainers with their defaults, on a dense decoder and on a mixture of experts, beside Llama and Mixtral."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.ecosystem.families import DECODERS, MIXTURES, model
from tests.text.samples import train_bpe_tokenizer

trl = pytest.importorskip("trl")

TEXTS = ["the cat sat on the mat and the dog ran", "where is the cat now", "a dog and a cat are friends", "yes no"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "SFT": [{"text": text} for text in TEXTS],
    "DPO": [{"prompt": "the cat", "chosen": " sat on the mat", "rejected": " dog"}] * 4,
    "KTO": [{"prompt": "the cat", "completion": text, "label": text == " sat"} for text in (" sat", " dog")] * 2,
    "Reward": [{"chosen": "the cat sat on the mat", "rejected": "the dog"}] * 4,
    "GRPO": [{"prompt": "the cat"}, {"prompt": "where is"}] * 2,
    "RLOO": [{"prompt": "the cat"}, {"prompt": "where is"}] * 2,
}
GENERATES = ("GRPO", "RLOO")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe_tokenizer(TEXTS * 5, vocab_size=280)


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("family", [*DECODERS, *MIXTURES])
@pytest.mark.parametrize("method", ROWS)
def test_it_trains_saves_and_loads(
    method: str, family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    auto = AutoModelForSequenceClassification if method == "Reward" else AutoModelForCausalLM
    fields = {"num_labels": 1} if method == "Reward" else {}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    made = model(family, auto.__name__, vocab_size=len(tokenizer), **ids, **fields)
    made.save_pretrained(tmp_path / "new")
    made = auto.from_pretrained(tmp_path / "new")  # whose name is where DPO and others load the reference from
    options: dict[str, Any] = {"num_generations": 2, "max_completion_length": 5} if method in GENERATES else {}
    args = getattr(trl, f"{method}Config")(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, logging_steps=1, report_to=[], use_cpu=True,
        bf16=False, save_strategy="no", disable_tqdm=True, **options,
    )  # fmt: skip
    rows, reward = Dataset.from_list(ROWS[method]), {"reward_funcs": letters} if method in GENERATES else {}
    trainer = getattr(trl, f"{method}Trainer")(
        model=made, args=args, train_dataset=rows, processing_class=tokenizer, **reward
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    assert ("aux_loss" in logs[-1]) == (family in MIXTURES and method != "Reward")
    if "aux_loss" in logs[-1]:
        assert 1.9 < logs[-1]["aux_loss"] < 4, "2 where two of four experts are chosen evenly"
    trainer.save_model(tmp_path / "saved")
    again = auto.from_pretrained(tmp_path / "saved")
    assert {name for name, p in again.named_parameters() if not p.equal(made.get_parameter(name))} == set()
