"""Every encoder's checkpoint goes on with every objective for encoders; what it lacks is new, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from tests.train.test_objectives import inputs_of, model_of, objective_of, ragged, tokenizer
from tuner.arguments import RecipeArguments
from tuner.errors import ModelError
from tuner.train.pretraining_model import CLASSES, load_pretraining_model

NAMES = ["mlm", "mlm+nsp", "rtd", "contrastive"]
HEADS = {
    "mlm": ["prediction", "lm_head"],
    "mlm+nsp": ["prediction", "lm_head", "seq_relationship"],
    "rtd": ["prediction", "score"],
    "contrastive": [],
}
# What else a checkpoint of one has not that another wants.
POOLED, OF_TOKENS = ("mlm+nsp", "contrastive"), ("mlm", "mlm+nsp")


def load(objective: str, folder: Path) -> Any:
    args = RecipeArguments(model_name_or_path=str(folder))
    args.objective = objective  # a recipe's own flag
    return load_pretraining_model(args, tokenizer("mlm"))


def encoder_of(model: Any) -> Any:
    model = getattr(model, "discriminator", model)
    return getattr(model, "model", model)


def lacking(source: str, objective: str) -> set[str]:
    found = set() if source == objective else set(HEADS[objective])
    if source in OF_TOKENS and objective in OF_TOKENS:
        found -= set(HEADS["mlm"])
    if objective == "rtd" and source not in OF_TOKENS:
        found |= {"generator.prediction", "generator.lm_head"}
    if objective in POOLED and source not in POOLED:
        found.add("pooler")
    return found | ({"embed_types"} if objective == "mlm+nsp" != source else set())


@pytest.mark.parametrize("objective", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_a_checkpoint_of_any_encoder_goes_on(source, objective, tmp_path, capsys):
    saved: PreTrainedModel = getattr(model_of(source), "discriminator", model_of(source))
    saved.save_pretrained(tmp_path)
    model = load(objective, tmp_path)
    assert type(model) is CLASSES[objective][0]
    said = capsys.readouterr().out
    new = set(said.rpartition("these are new: ")[2].strip(". \n").split(", ")) - {""}
    assert new == lacking(source, objective)

    kept = encoder_of(model).state_dict()
    for name, value in encoder_of(saved).state_dict().items():
        assert name.startswith("pooler") or torch.equal(kept[name], value), name
    heads = [name for name in HEADS[objective] if name not in new]
    part = getattr(model, "discriminator", model)
    for head in heads:
        for name, value in getattr(saved, head).state_dict().items():
            assert torch.equal(getattr(part, head).state_dict()[name], value), name
    if objective == "rtd":
        first = encoder_of(saved).layers[0].state_dict()
        assert len(model.generator.model.layers) < len(model.discriminator.model.layers)
        for name, value in model.generator.model.layers[0].state_dict().items():
            assert torch.equal(value, first[name]), name

    total, count = objective_of(objective).loss(model.train(), **inputs_of(objective_of(objective)(ragged(objective))))
    (total / count).backward()
    assert all(p.grad is not None for p in encoder_of(model).layers.parameters())


@pytest.mark.parametrize("objective", ["rtd", "contrastive"])
def test_a_decoder_is_no_encoder(objective, tmp_path):
    model_of("clm").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is no TunerEncoder"):
        load(objective, tmp_path)


def test_a_discriminator_of_transformers_keeps_its_head(tmp_path):
    which = tokenizer("mlm")
    config = transformers.ElectraConfig(
        vocab_size=len(which), hidden_size=32, embedding_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=which.pad_token_id,
    )  # fmt: skip
    theirs = transformers.ElectraForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(5, 15)[None]
    ours = load("rtd", tmp_path).discriminator.eval()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-6)
