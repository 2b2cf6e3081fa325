"""transformers' tests of a model on one of our shapes or a stock family: what `test_transformers_suites` runs."""

from __future__ import annotations

import os
import typing
import unittest
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

import tuner.model
from tests.ecosystem.families import config, token_ids

DECODER_HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
ENCODER_HEADS = (
    *("Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", "ForMultipleChoice"),
    *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
)
PAIR_HEADS = ("Model", "ForConditionalGeneration", "ForSequenceClassification")
BERT = {
    "position_embedding_type": "learned", "norm_type": "layernorm", "norm_position": "post", "norm_eps": 1e-12,
    "mlp_type": "plain", "hidden_act": "gelu", "mlp_bias": True, "attention_bias": True, "use_qk_norm": False,
    "embedding_norm": True, "lm_head_bias": True,
}  # fmt: skip
# What is named in the environment: the family, fields of its configuration, the prefix of its classes, their heads.
TESTED: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "Llama": ("llama", {}, "Llama", DECODER_HEADS),
    "Mixtral": ("mixtral", {}, "Mixtral", DECODER_HEADS),
    "Dense": ("tuner decoder", {}, "TunerDecoder", DECODER_HEADS),
    "Mixture": ("tuner experts", {}, "TunerDecoder", DECODER_HEADS),
    "Relative": ("tuner decoder", {"position_embedding_type": "relative"}, "TunerDecoder", DECODER_HEADS),
    "Alibi": ("tuner decoder", {"position_embedding_type": "alibi"}, "TunerDecoder", DECODER_HEADS),
    "Sliding": ("tuner decoder", {"sliding_window": 3}, "TunerDecoder", DECODER_HEADS),
    "Bert": ("bert", {}, "Bert", ENCODER_HEADS),
    "Rotary": ("tuner encoder", {}, "TunerEncoder", (*ENCODER_HEADS, "ForReplacedTokenDetection")),
    "PostNorm": ("tuner encoder", BERT, "TunerEncoder", (*ENCODER_HEADS, "ForReplacedTokenDetection")),
    "Bart": ("bart", {}, "Bart", PAIR_HEADS),
    "Pair": ("tuner seq2seq", {}, "TunerSeq2Seq", PAIR_HEADS),
}


class Tester:
    """What transformers' tests ask of a model's own: sizes, a configuration, inputs."""

    batch_size, seq_length, num_choices, is_training = 7, 7, 4, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, family: str, fields: dict[str, Any], head: type) -> None:
        self.family, self.fields, self.causal_lm_class = family, fields, head

    def get_config(self) -> PreTrainedConfig:
        return config(self.family, **self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        made, ids = self.get_config(), token_ids(self.batch_size, self.seq_length)
        mask = torch.ones_like(ids)
        inputs = {"input_ids": ids, "attention_mask": mask if made.is_encoder_decoder else mask.tril()}
        if made.is_encoder_decoder:
            ids[:, -1] = made.eos_token_id  # where BART classifies
            inputs |= {"decoder_input_ids": token_ids(self.batch_size, self.seq_length, seed=1)}
        return made, inputs


class Common(ModelTesterMixin):
    """`ModelTesterMixin` with labels of the heads that transformers leaves to each model's own tests."""

    test_generation_tester_mixin_inheritance = None  # of a mixin that no source package has

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        name, rows = model_class.__name__, self.model_tester.batch_size
        tokens = torch.zeros(rows, self.model_tester.seq_length, dtype=torch.long)
        if return_labels and name in modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.values():
            inputs["labels"] = tokens
            if name.endswith("ForPreTraining"):
                inputs["next_sentence_label"] = torch.zeros(rows, dtype=torch.long)
        if return_labels and name.endswith("ForReplacedTokenDetection"):
            inputs["labels"] = tokens
        return inputs


FAMILY, FIELDS, PREFIX, HEADS = TESTED[os.environ["TESTED"]]
CLASSES = tuple(getattr(tuner.model if PREFIX.startswith("Tuner") else transformers, PREFIX + head) for head in HEADS)
PAIR = HEADS == PAIR_HEADS
for _class in CLASSES:  # the tests read what a model returns, which is text where annotations are
    _class.forward.__annotations__["return"] = typing.get_type_hints(_class.forward).get("return")


class ModelTest(Common, *(() if PAIR else (TrainingTesterMixin,)), unittest.TestCase):
    """Of the family in the environment. Overfitting is not for pairs: it expects a decoder to go on from its input."""

    all_model_classes = CLASSES
    is_encoder_decoder = PAIR
    test_can_init_all_missing_weights_before_2023 = PREFIX.startswith("Tuner")  # a file without a year is old there
    _is_composite = FAMILY == "tuner seq2seq"
    model_tester = None

    def setUp(self) -> None:
        self.model_tester = Tester(FAMILY, FIELDS, CLASSES[1])
        if "_rope_" in self._testMethodName and FIELDS.get("position_embedding_type", "rotary") != "rotary":
            self.skipTest("the configuration has a field of rotary positions, but the model has none")
        if FAMILY == "tuner experts":  # one class of ours is for mixtures and for others
            told = mock.patch.object(
                tuner.model.TunerPreTrainedModel, "_can_set_experts_implementation", lambda *_: True
            )
            told.start()
            self.addCleanup(told.stop)
