"""Heads beside the same heads of stock families: shapes, losses, pipelines, and transformers' Trainer over them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, default_data_collator, pipeline
from transformers.utils import ModelOutput, logging

from tests.ecosystem.families import DECODERS, ENCODERS, PAIRS, model, token_ids
from tests.text.samples import train_bpe_tokenizer
from tuner.model import TunerEncoderForReplacedTokenDetection

FAMILIES = {
    "CausalLM": DECODERS,
    "MaskedLM": ENCODERS,
    "Seq2SeqLM": PAIRS,
    "PreTraining": ("bert", "tuner encoder"),
    "SequenceClassification": (*DECODERS, *ENCODERS, *PAIRS),
    "TokenClassification": (*DECODERS, *ENCODERS),
    "QuestionAnswering": (*DECODERS, *ENCODERS),
    "MultipleChoice": ENCODERS,
    "NextSentencePrediction": ENCODERS,
}
HEADS = [(family, head) for head, families in FAMILIES.items() for family in families]


def batch(head: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of 4 rows, the second of them padded, and labels."""
    ids, mask = token_ids(4, 8), torch.ones(4, 8, dtype=torch.long)
    ids[0::2, -1] = ids[3, -1] = ids[1, 4] = 2  # BART classifies at the end token
    ids[1, 5:], mask[1, 5:] = 0, 0
    labels: dict[str, Any] = {
        "SequenceClassification": {"labels": torch.tensor([0, 1, 1, 0])},
        "TokenClassification": {"labels": (ids % 2).masked_fill(mask == 0, -100)},
        "QuestionAnswering": {"start_positions": torch.arange(4), "end_positions": torch.arange(4)},
        "MultipleChoice": {"labels": torch.tensor([2, 0, 1, 1])},
        "NextSentencePrediction": {"labels": torch.tensor([0, 1, 1, 0])},
    }.get(head, {"labels": ids.masked_fill(mask == 0, -100)})
    if head == "PreTraining":
        labels["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
    if head == "MultipleChoice":
        ids, mask = (torch.stack([t, t.roll(1, 0), t.roll(2, 0)], dim=1) for t in (ids, mask))
    return {"input_ids": ids, "attention_mask": mask}, labels


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_what_a_head_returns_is_annotated(family, head):
    """sentence-transformers reads the fields of an output, `logits` among them, from the annotation."""
    made = model(family, f"AutoModelFor{head}")
    annotation = get_type_hints(made.forward)["return"]
    concrete = [kind for kind in (annotation, *get_args(annotation)) if inspect.isclass(kind)]
    concrete = [kind for kind in concrete if issubclass(kind, ModelOutput)]
    names = [field.name for kind in concrete for field in fields(kind)]
    inputs, labels = batch(head)
    assert set(made(**inputs, **labels).keys()) <= set(names)


@pytest.mark.tool("transformers 5.23", "heads: save and load")
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_a_head_comes_back(family, head, tmp_path):
    made = model(family, f"AutoModelFor{head}")
    inputs, labels = batch(head)
    made(**inputs, **labels).loss.backward()
    idle = [name for name, p in made.named_parameters() if p.grad is None and "token_type" not in name]
    assert not idle or family == "bert"
    made.save_pretrained(tmp_path)
    again, report = type(made).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(made(**inputs, **labels)[1], again(**inputs, **labels)[1])


@pytest.mark.parametrize("family", DECODERS)
def test_tokens_are_classified_with_what_came_before(family):
    made = model(family, "AutoModelForTokenClassification", num_labels=5)
    ids = token_ids(2, 6)
    logits = made(ids, labels=ids % 5).logits
    assert logits.shape == (2, 6, 5)
    torch.testing.assert_close(made(ids[:, :4]).logits, logits[:, :4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_which_choice(family):
    made = model(family, "AutoModelForMultipleChoice")
    inputs, labels = batch("MultipleChoice")
    output = made(**inputs, **labels)
    assert output.logits.shape == (4, 3)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels["labels"]))
    alone = made(**{name: t[:, 1:2] for name, t in inputs.items()}).logits
    torch.testing.assert_close(alone, output.logits[:, 1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", PAIRS)
def test_both_parts_of_a_pair_read_what_is_classified(family):
    """BART reads the state at the end token, which must be there; ours that at the last token."""
    made = model(family, "AutoModelForSequenceClassification", num_labels=3)
    ids = token_ids(2, 6)
    ids[:, -1] = 2
    labels = torch.tensor([2, 0])
    output = made(ids, labels=labels)
    assert output.logits.shape == (2, 3)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    padded = F.pad(ids, (0, 3), value=0)
    mask = (padded != 0).long()
    torch.testing.assert_close(made(padded, mask).logits, output.logits, rtol=1e-4, atol=1e-5)
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] + 1) % 60 + 3
    assert not torch.allclose(made(changed).logits, output.logits, rtol=0, atol=1e-5)


def test_a_pair_classifies_embeddings_and_rows_padded_on_the_left():
    made = model("tuner seq2seq", "AutoModelForSequenceClassification")
    ids = token_ids(2, 6)
    whole = made(ids).logits
    torch.testing.assert_close(made(inputs_embeds=made.get_input_embeddings()(ids)).logits, whole)
    padded = F.pad(ids, (0, 2), value=0)
    torch.testing.assert_close(made(padded).logits, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", PAIRS)
def test_a_pair_classifies_by_what_its_decoder_is_given(family):
    made, ids = model(family, "AutoModelForSequenceClassification"), token_ids(2, 6)
    ids[:, -1] = 2
    start = made.config.decoder_start_token_id
    given = F.pad(ids[:, :-1], (1, 0), value=start)
    whole = made(ids).logits
    torch.testing.assert_close(made(ids, decoder_input_ids=given).logits, whole)
    other = torch.cat([given[:, :1], given[:, 1:].flip(1)], dim=1)
    assert not torch.allclose(made(ids, decoder_input_ids=other).logits, whole, rtol=0, atol=1e-6)


def test_a_pair_classifies_by_the_last_token_that_its_decoder_is_given():
    made, ids = model("tuner seq2seq", "AutoModelForSequenceClassification"), token_ids(2, 6)
    given = token_ids(2, 4, seed=1)
    whole = made(ids, decoder_input_ids=given).logits
    embeds = made.get_input_embeddings()(given)
    torch.testing.assert_close(made(ids, decoder_inputs_embeds=embeds).logits, whole)
    padded, mask = F.pad(given, (0, 3), value=0), F.pad(torch.ones_like(given), (0, 3), value=0)
    found = made(ids, decoder_input_ids=padded, decoder_attention_mask=mask).logits
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def trained(
    made: Any, rows: Dataset, folder: Any, batch_size: int, steps: int
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss that the Trainer logs for the 4 rows, and the gradients of its one step."""
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps, max_steps=1,
        logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", max_grad_norm=0, learning_rate=0.1,
        optim="sgd", lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    trainer = Trainer(made.train(), args, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()
    moved = {name: (before[name] - p.detach()) / 0.1 for name, p in made.named_parameters()}
    return next(log["loss"] for log in trainer.state.log_history if "loss" in log), moved


OURS = [(family, head) for family, head in HEADS if family.startswith("tuner")]


@pytest.mark.tool("transformers 5.23", "Trainer: gradient accumulation")
@pytest.mark.parametrize(("family", "head"), [*OURS, ("tuner encoder", "ReplacedTokenDetection")])
def test_accumulation_changes_nothing(family, head, tmp_path):
    """Under transformers' Trainer. Of stock families' heads without `num_items_in_batch` the loss grows with it."""

    def new() -> Any:
        auto = "PreTraining" if head == "ReplacedTokenDetection" else head
        made = model(family, f"AutoModelFor{auto}")
        if head == "ReplacedTokenDetection":
            torch.manual_seed(0)
            made = TunerEncoderForReplacedTokenDetection(made.config)
        return made

    inputs, labels = batch("TokenClassification" if head == "ReplacedTokenDetection" else head)
    if head == "TokenClassification" and family in DECODERS:  # the generic head's is a mean of means
        labels = {"labels": inputs["input_ids"] % 2}
    rows = Dataset.from_dict({name: t.tolist() for name, t in {**inputs, **labels}.items()})
    whole, gradient = trained(new(), rows, tmp_path, 4, 1)
    parts, accumulated = trained(new(), rows, tmp_path, 1, 4)
    assert parts == pytest.approx(whole, rel=1e-4)
    for name, expected in gradient.items():
        torch.testing.assert_close(accumulated[name], expected, rtol=1e-3, atol=2e-5, msg=name)


TASKS = {
    "text-generation": ("CausalLM", DECODERS),
    "fill-mask": ("MaskedLM", ENCODERS),
    "text-classification": ("SequenceClassification", (*DECODERS, *ENCODERS, "tuner seq2seq")),
    "zero-shot-classification": ("SequenceClassification", (*DECODERS, *ENCODERS)),
    "token-classification": ("TokenClassification", (*DECODERS, *ENCODERS)),
}


@pytest.mark.tool("transformers 5.23", "pipelines")
@pytest.mark.parametrize(("family", "task"), [(family, task) for task, (_, those) in TASKS.items() for family in those])
def test_pipelines_know_it(family, task, monkeypatch):
    """They log an error of a class that is not in their table, and run it all the same."""
    tokenizer = train_bpe_tokenizer(["the cat sat on the mat", "this example is a cat"] * 5, vocab_size=280)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    fields = {"vocab_size": len(tokenizer)} if family != "tuner seq2seq" else {}
    made = model(family, f"AutoModelFor{TASKS[task][0]}", **ids, **fields)
    if family == "tuner seq2seq":
        made.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        made.config.decoder_start_token_id = tokenizer.pad_token_id
    errors: list[str] = []
    monkeypatch.setattr(logging.get_logger("transformers.pipelines.base"), "error", errors.append)
    run = pipeline(task, made, tokenizer=tokenizer)
    given = {"candidate_labels": ["cat", "mat"]} if "zero" in task else {}
    assert run("the cat <mask>" if task == "fill-mask" else "the cat sat", **given)
    assert errors == []
