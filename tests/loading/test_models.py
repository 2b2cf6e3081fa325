"""Every encoder's checkpoint goes on with every objective for encoders; what it lacks is new, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from tests.objectives.test_pretraining import inputs_of, model_of, objective_of, ragged, tokenizer
from tuner.config.arguments import RecipeArguments
from tuner.errors import ModelError
from tuner.loading.models import CLASSES, build_model, prepare_model
from tuner.objectives.registry import PRETRAINING

NAMES = ["mlm", "mlm+nsp", "rtd", "contrastive"]
HEADS = {
    "mlm": ["prediction", "lm_head"],
    "mlm+nsp": ["prediction", "lm_head", "seq_relationship"],
    "rtd": ["prediction", "score"],
    "contrastive": [],
}
# What else a checkpoint of one has not that another wants.
POOLED, OF_TOKENS = ("mlm+nsp", "contrastive"), ("mlm", "mlm+nsp")


def load(objective: str, folder: Path, max_length: int = 32) -> Any:
    args = RecipeArguments(model_name_or_path=str(folder), max_length=max_length)
    model, new = build_model(args, PRETRAINING[objective].model, tokenizer("mlm"))
    print(new)
    return model


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
    assert type(model) is CLASSES[PRETRAINING[objective].model]
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

    totals, counts = objective_of(objective).loss(
        model.train(), **inputs_of(objective_of(objective)(ragged(objective)))
    )
    (totals / counts).sum().backward()
    assert all(p.grad is not None for p in encoder_of(model).layers.parameters())


@pytest.mark.parametrize("objective", ["rtd", "contrastive"])
def test_a_decoder_is_no_encoder(objective, tmp_path):
    model_of("clm").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is no TunerEncoder"):
        load(objective, tmp_path)


@pytest.mark.parametrize("objective", ["clm", "mlm", "denoise"])
def test_a_tokenizer_of_another_model_is_refused(objective, tmp_path):
    model_of(objective, vocab_size=100).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="embeds 100: they do not belong together"):
        load(objective, tmp_path)


LEARNT = {"position_embedding_type": "learned", "max_position_embeddings": 64}
MIXED = {"attention_type": "linformer", "max_position_embeddings": 64, "linformer_k": 16}


@pytest.mark.parametrize("changes", [LEARNT, MIXED], ids=["learned", "linformer"])
def test_no_sequence_is_longer_than_the_positions(changes, tmp_path):
    model_of("mlm", **changes).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="--max_length 65: the model has 64 positions"):
        load("mlm", tmp_path, max_length=65)
    load("mlm", tmp_path, max_length=64)


def test_positions_that_are_computed_do_not_end(tmp_path):
    model_of("mlm", max_position_embeddings=64).save_pretrained(tmp_path)
    load("mlm", tmp_path, max_length=65)


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(n_positions=64, n_embd=32, n_layer=1, n_head=2, vocab_size=600),
        transformers.OPTConfig(
            max_position_embeddings=64, hidden_size=32, ffn_dim=32, word_embed_proj_dim=32, num_hidden_layers=1,
            num_attention_heads=2, vocab_size=600,
        ),
    ],
    ids=["gpt2", "opt"],
)  # fmt: skip
def test_positions_of_transformers_end_too(config):
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="the model has 64 positions"):
        prepare_model(RecipeArguments(max_length=65), model)
    prepare_model(RecipeArguments(max_length=64), model)


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
