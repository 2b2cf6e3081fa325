"""Every head: found by the Auto classes, with the loss that its name says, and run by transformers' pipelines."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

import tuner.model
from tests.model.test_shapes import SIZE, decoder, encoder, pair
from tests.text.samples import train_bpe_tokenizer
from tuner.model import TunerEncoderForReplacedTokenDetection

CORPUS = ["the cat sat on the mat and the dog ran", "where is the cat now", "a dog and a cat are friends", "yes no"] * 5
PUBLIC = (
    *("TunerDecoderConfig", "TunerDecoderModel", "TunerDecoderForCausalLM", "TunerDecoderForSequenceClassification"),
    *("TunerEncoderConfig", "TunerEncoderModel", "TunerEncoderForMaskedLM", "TunerEncoderForPreTraining"),
    *("TunerEncoderForReplacedTokenDetection", "TunerEncoderForSequenceClassification"),
    *("TunerEncoderForTokenClassification", "TunerEncoderForQuestionAnswering", "TunerSeq2SeqConfig"),
    *("TunerSeq2SeqModel", "TunerSeq2SeqForConditionalGeneration", "TunerSeq2SeqForSequenceClassification"),
    *("TunerDecoderForTokenClassification", "TunerDecoderForQuestionAnswering", "TunerEncoderForMultipleChoice"),
    "TunerEncoderForNextSentencePrediction",
)
AUTO = [
    (AutoModel, decoder, "TunerDecoderModel"),
    (AutoModel, encoder, "TunerEncoderModel"),
    (AutoModel, pair, "TunerSeq2SeqModel"),
    (AutoModelForCausalLM, decoder, "TunerDecoderForCausalLM"),
    (AutoModelForSequenceClassification, decoder, "TunerDecoderForSequenceClassification"),
    (AutoModelForSequenceClassification, encoder, "TunerEncoderForSequenceClassification"),
    (AutoModelForMaskedLM, encoder, "TunerEncoderForMaskedLM"),
    (AutoModelForPreTraining, encoder, "TunerEncoderForPreTraining"),
    (AutoModelForTokenClassification, encoder, "TunerEncoderForTokenClassification"),
    (AutoModelForQuestionAnswering, encoder, "TunerEncoderForQuestionAnswering"),
    (AutoModelForSeq2SeqLM, pair, "TunerSeq2SeqForConditionalGeneration"),
]


def head(auto, shape, **fields):
    torch.manual_seed(0)
    return auto.from_config(shape(**fields).config).eval()


def rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(3, 61, (3, 10), generator=generator), torch.ones(3, 10, dtype=torch.long)
    mask[1, 6:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def test_public_names():
    assert all(hasattr(tuner.model, name) for name in PUBLIC)


@pytest.mark.parametrize(("auto", "shape", "name"), AUTO)
def test_auto_classes_find_it(auto, shape, name, tmp_path):
    model = head(auto, shape)
    assert type(model).__name__ == name
    model.save_pretrained(tmp_path)
    again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not report["missing_keys"] and not report["unexpected_keys"]
    inputs = rows()
    if shape is pair:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], again(**inputs)[0])


@pytest.mark.parametrize("shape", [decoder, encoder])
def test_a_class_for_a_sequence(shape):
    model, inputs = head(AutoModelForSequenceClassification, shape, num_labels=3), rows()
    labels = torch.tensor([2, 0, 1])
    output = model(**inputs, labels=labels)
    assert output.logits.shape == (3, 3)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    # What the padded row says does not depend on how long it is padded.
    short = {name: t[1:2, :6] for name, t in inputs.items()}
    torch.testing.assert_close(model(**short).logits[0], output.logits[1], rtol=1e-4, atol=1e-5)


def test_a_number_and_several_classes_for_a_sequence():
    number = head(AutoModelForSequenceClassification, encoder, num_labels=1, problem_type="regression")
    labels = torch.tensor([0.5, -1.0, 2.0])
    output = number(**rows(), labels=labels)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits.squeeze(1), labels))
    several = head(AutoModelForSequenceClassification, encoder, num_labels=2, problem_type="multi_label_classification")
    labels = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    output = several(**rows(), labels=labels)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels))


def test_a_class_for_every_token():
    model, inputs = head(AutoModelForTokenClassification, encoder, num_labels=5), rows()
    labels = (inputs["input_ids"] % 5).masked_fill(inputs["attention_mask"] == 0, -100)
    output = model(**inputs, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), labels.flatten()))
    assert all(p.grad is None for p in model.parameters())
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters()), "no parameter is idle"


def test_where_an_answer_is():
    model = head(AutoModelForQuestionAnswering, encoder)
    starts, ends = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    output = model(**rows(), start_positions=starts, end_positions=ends)
    wanted = (F.cross_entropy(output.start_logits, starts) + F.cross_entropy(output.end_logits, ends)) / 2
    torch.testing.assert_close(output.loss, wanted)
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters()), "no parameter is idle"


def test_masked_tokens_and_the_order_of_segments():
    model, inputs = head(AutoModelForPreTraining, encoder, type_vocab_size=2), rows()
    labels = inputs["input_ids"].masked_fill(torch.arange(10) % 3 > 0, -100)
    order = torch.tensor([0, 1, 0])
    inputs["token_type_ids"] = (torch.arange(10) > 4).long().expand(3, -1)
    output = model(**inputs, labels=labels, next_sentence_label=order)
    tokens = F.cross_entropy(output.prediction_logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.loss, tokens + F.cross_entropy(output.seq_relationship_logits, order))
    torch.testing.assert_close(model(**inputs, labels=labels).loss, tokens)
    assert model(**inputs).loss is None


def test_replaced_tokens():
    torch.manual_seed(0)
    model, inputs = TunerEncoderForReplacedTokenDetection(encoder().config).eval(), rows()
    labels = (inputs["input_ids"] % 2).masked_fill(torch.arange(10) == 1, -100)
    output = model(**inputs, labels=labels)
    counts = inputs["attention_mask"].bool() & (torch.arange(10) != 1)
    wanted = F.binary_cross_entropy_with_logits(output.logits[counts], labels[counts].float())
    torch.testing.assert_close(output.loss, wanted)


def test_a_pair_predicts_the_label_where_it_stands():
    model, inputs = pair().eval(), rows()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    output = model(**inputs, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), labels.flatten()))
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted[:, 0].tolist() == [0] * 3 and torch.equal(shifted[0, 1:], labels[0, :-1])
    assert int(shifted.min()) >= 0
    torch.testing.assert_close(model(**inputs, decoder_input_ids=shifted).logits, output.logits)
    half = model(**inputs, labels=labels, num_items_in_batch=2 * int((labels != -100).sum()))
    torch.testing.assert_close(half.loss, output.loss / 2)
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id and pad_token_id"):
        model(**inputs, labels=labels)


def test_what_a_pair_records():
    model, inputs = pair().eval(), rows()
    model.set_attn_implementation("eager")
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    output = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert [t.shape for t in output.encoder_attentions] == [(3, 4, 10, 10)] * 2
    assert [t.shape for t in output.decoder_attentions] == [(3, 4, 4, 4)] * 2
    assert [t.shape for t in output.cross_attentions] == [(3, 4, 4, 10)] * 2
    assert len(output.encoder_hidden_states) == len(output.decoder_hidden_states) == SIZE["num_hidden_layers"] + 1
    assert float(output.cross_attentions[0][1, :, :, 6:].abs().max()) == 0, "padding of the source is not looked at"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    made = train_bpe_tokenizer(CORPUS, vocab_size=300)
    made.add_special_tokens({"mask_token": "<mask>"})
    return made


def small(shape, tokenizer):
    return shape(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)


def test_text_generation(tokenizer):
    found = pipeline("text-generation", small(decoder, tokenizer), tokenizer=tokenizer)(
        ["the cat", "where is the dog"], max_new_tokens=5, batch_size=2
    )
    assert all(text[0]["generated_text"].startswith(("the cat", "where is")) for text in found)


def test_fill_mask(tokenizer):
    found = pipeline("fill-mask", small(encoder, tokenizer), tokenizer=tokenizer)("the <mask> sat on the mat")
    assert len(found) == 5 and 0 < sum(guess["score"] for guess in found) <= 1


@pytest.mark.parametrize("shape", [decoder, encoder])
def test_text_classification(shape, tokenizer):
    model = head(AutoModelForSequenceClassification, lambda: small(shape, tokenizer))
    found = pipeline("text-classification", model, tokenizer=tokenizer)(["yes", "no no no"], batch_size=2)
    assert [guess["label"] in ("LABEL_0", "LABEL_1") for guess in found] == [True, True]


def test_token_classification(tokenizer):
    model = head(AutoModelForTokenClassification, lambda: small(encoder, tokenizer))
    assert len(pipeline("token-classification", model, tokenizer=tokenizer)("the cat sat")) >= 3


@pytest.mark.parametrize("shape", [decoder, encoder])
def test_feature_extraction(shape, tokenizer):
    model = head(AutoModel, lambda: small(shape, tokenizer))
    found = pipeline("feature-extraction", model, tokenizer=tokenizer)("the cat sat")
    assert len(found[0][0]) == SIZE["hidden_size"]
