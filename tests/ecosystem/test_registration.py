"""Where tools look a model up by its type or by the name of its class, and what a saved folder says of itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments
from transformers.models.auto import modeling_auto

from tests.ecosystem.families import DECODERS, ENCODERS, MIXTURES, PAIRS, config, model, token_ids

NAMES = {
    "tuner_decoder": {
        "": "TunerDecoderModel",
        "FOR_CAUSAL_LM_": "TunerDecoderForCausalLM",
        "FOR_PRETRAINING_": "TunerDecoderForCausalLM",
        "FOR_SEQUENCE_CLASSIFICATION_": "TunerDecoderForSequenceClassification",
        "FOR_TOKEN_CLASSIFICATION_": "TunerDecoderForTokenClassification",
        "FOR_QUESTION_ANSWERING_": "TunerDecoderForQuestionAnswering",
    },
    "tuner_encoder": {
        "": "TunerEncoderModel",
        "FOR_TEXT_ENCODING_": "TunerEncoderModel",
        "FOR_MASKED_LM_": "TunerEncoderForMaskedLM",
        "FOR_PRETRAINING_": "TunerEncoderForPreTraining",
        "FOR_SEQUENCE_CLASSIFICATION_": "TunerEncoderForSequenceClassification",
        "FOR_TOKEN_CLASSIFICATION_": "TunerEncoderForTokenClassification",
        "FOR_QUESTION_ANSWERING_": "TunerEncoderForQuestionAnswering",
        "FOR_MULTIPLE_CHOICE_": "TunerEncoderForMultipleChoice",
        "FOR_NEXT_SENTENCE_PREDICTION_": "TunerEncoderForNextSentencePrediction",
    },
    "tuner_seq2seq": {
        "": "TunerSeq2SeqModel",
        "FOR_SEQ_TO_SEQ_CAUSAL_LM_": "TunerSeq2SeqForConditionalGeneration",
        "FOR_PRETRAINING_": "TunerSeq2SeqForConditionalGeneration",
        "FOR_SEQUENCE_CLASSIFICATION_": "TunerSeq2SeqForSequenceClassification",
    },
}


@pytest.mark.parametrize("model_type", NAMES)
def test_the_tables_of_names_have_it(model_type):
    """The label smoother, pipelines and lm-eval ask these, and not the Auto classes."""
    for kind, name in NAMES[model_type].items():
        assert getattr(modeling_auto, f"MODEL_{kind}MAPPING_NAMES")[model_type] == name
    there = {name for name in vars(modeling_auto) if name.endswith("MAPPING_NAMES")}
    found = {name for name in there if model_type in getattr(modeling_auto, name)}
    assert found == {f"MODEL_{kind}MAPPING_NAMES" for kind in NAMES[model_type]}


@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_which_of_the_two_generates(family):
    """lm-eval's default backend asks in this order."""
    pairs = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    model_type = config(family).model_type
    assert (model_type in pairs) == (family in PAIRS)
    assert model_type in pairs or model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@pytest.mark.tool("transformers 5.23", "Trainer: label smoothing")
@pytest.mark.parametrize("family", [*DECODERS, *MIXTURES, *ENCODERS, *PAIRS])
@pytest.mark.parametrize("adapted", [False, True])
def test_label_smoothing_compares_with_the_right_token(family, adapted, tmp_path):
    """Of a decoder, with the next: a label where it stands is the input again."""
    auto = {"bert": "MaskedLM", "tuner encoder": "MaskedLM", "bart": "Seq2SeqLM", "tuner seq2seq": "Seq2SeqLM"}
    made = model(family, f"AutoModelFor{auto.get(family, 'CausalLM')}")
    if adapted:
        peft = pytest.importorskip("peft")
        made = peft.get_peft_model(made, peft.LoraConfig(r=2, target_modules="all-linear"))
    args = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to=[], use_cpu=True)
    ids = token_ids(2, 9)
    inputs = {"input_ids": ids, "labels": ids.clone()}
    if family in PAIRS:
        inputs["decoder_input_ids"] = token_ids(2, 9, seed=1)
    with torch.no_grad():
        logits = made(**{name: t for name, t in inputs.items() if name != "labels"}).logits
        found = Trainer(made, args).compute_loss(made, dict(inputs))
    shift = 0 if family in auto else 1
    targets = ids[:, shift:].flatten()
    wanted = torch.nn.functional.cross_entropy(logits[:, : 9 - shift].flatten(0, 1), targets, label_smoothing=0.1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.tool("transformers 5.23", "auto_map of a saved folder")
@pytest.mark.parametrize("family", ["tuner decoder", "tuner encoder", "tuner seq2seq"])
def test_a_folder_names_every_class_of_its_shape(family, tmp_path):
    names = NAMES[config(family).model_type]
    folders = {}
    for auto in transformers.models.auto.modeling_auto.__all__:
        kind = getattr(transformers, auto, None)
        if auto.startswith("AutoModel") and config(family).__class__ in kind._model_mapping:
            folder = tmp_path / auto
            model(family, auto).save_pretrained(folder)
            folders[auto] = json.loads((folder / "config.json").read_text())["auto_map"]
            for reference in folders[auto].values():
                module, _, name = reference.partition(".")
                assert f"class {name}(" in (folder / f"{module}.py").read_text()
    assert {reference.partition(".")[2] for reference in folders["AutoModel"].values()} >= set(names.values())
    assert all(found == folders["AutoModel"] for found in folders.values())


ABROAD = """
import sys
sys.modules["tuner"] = None  # importing it fails
import torch, transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
folder, again, *autos = sys.argv[1:]
for auto in autos:
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    model(input_ids=torch.arange(3, 9)[None])
    print(auto, type(model).__name__)
model.save_pretrained(again)
model = transformers.AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
assert type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
import peft
print("adapted", peft.get_peft_model(model, peft.LoraConfig(r=2)).peft_config["default"].target_modules)
"""


@pytest.mark.slow
def test_a_causal_folder_loads_as_any_class_where_tuner_is_not_installed(tmp_path, monkeypatch):
    """And is known to the tables there, saves its code again, and takes an adapter."""
    model("tuner decoder", "AutoModelForCausalLM").save_pretrained(tmp_path / "model")
    heads = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "")
    autos = [f"AutoModel{head}" for head in heads]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    words = [sys.executable, "-c", ABROAD, str(tmp_path / "model"), str(tmp_path / "again"), *autos]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    *loaded, adapted = result.stdout.splitlines()
    assert loaded == [f"{auto} Tuner{auto.replace('Auto', 'Decoder').replace('ModelFor', 'For')}" for auto in autos]
    assert "q_proj" in adapted and "v_proj" in adapted
