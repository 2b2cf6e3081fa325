"""PEFT's own tests on our shapes, beside Llama, BERT and BART of the same size and saved in the same way.

The suites name models of the Hub. They run in a folder where each of those names is a folder with the family under
test, of the class that the name says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.ecosystem import suites
from tests.ecosystem.families import model
from tests.text import samples

TOOL = suites.check_name("peft")
OURS = {"decoder": "tuner decoder", "encoder": "tuner encoder", "encoder-decoder": "tuner seq2seq"}
STOCK = {"decoder": "llama", "encoder": "bert", "encoder-decoder": "bart"}
KIN = {"encoder": "llama", "encoder-decoder": "t5"}  # built as ours is: layers of the model's own, without biases
DECODER = {"tie_word_embeddings": False, "num_key_value_heads": 4}  # the suites expect Llama's head, and ranks of 20
HEADS = {
    "SequenceClassification": "AutoModelForSequenceClassification",
    "ConditionalGeneration": "AutoModelForSeq2SeqLM",
    "BertModel|RobertaModel|Deberta": "AutoModel",
    "": "AutoModelForCausalLM",
}
SHAPES = {"Bert|Roberta|Deberta": "encoder", "T5|Bart": "encoder-decoder", "": "decoder"}
# A file of tests, the shape, and which of its models stands for it, for the suites make exceptions by name.
SUITES = [
    ("decoder_models", "decoder", "tiny-random-LlamaForCausalLM"),
    ("seq_classifier", "decoder", "tiny-LlamaForSequenceClassification"),
    ("seq_classifier", "encoder", "tiny-random-BertForSequenceClassification"),
    ("token_classification_qa", "encoder", "tiny-random-BertForSequenceClassification"),
    ("feature_extraction_models", "encoder", "tiny-random-BertModel"),
    ("encoder_decoder_models", "encoder-decoder", "tiny-random-BartForConditionalGeneration"),
]


def first(table: dict[str, str], name: str) -> str:
    return next(value for pattern, value in table.items() if re.search(pattern, name))


def lay_out(tests: Path, families: dict[str, str], folder: Path) -> None:
    """The folders that the file of tests asks for."""
    tokenizer = samples.small()
    marks = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    for name in set(re.findall(r'"([\w-]+-testing/[\w.-]+)"', tests.read_text(encoding="utf-8"))):
        shape = first(SHAPES, name)
        fields = DECODER if shape == "decoder" else {}
        made = model(families[shape], first(HEADS, name), vocab_size=len(tokenizer), **marks, **fields)
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    quotes = folder / "ybelkada" / "english_quotes_copy" / "train.jsonl"
    quotes.parent.mkdir(parents=True)
    quotes.write_text("".join(json.dumps({"quote": text}) + "\n" for text in samples.texts()[:60]))


def outcomes(
    file: str, families: dict[str, str], folder: Path, which: str, only: Iterable[str] = ()
) -> suites.Outcomes:
    tests = suites.fetch("peft") / "peft_tests" / f"test_{file}.py"
    lay_out(tests, families, folder)
    return suites.run(tests, "peft", folder, "-k", which, only=only)


@pytest.mark.suite
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("file", "shape", "name"),
    [pytest.param(*suite, marks=pytest.mark.tool(TOOL, suite[0])) for suite in SUITES],
)
def test_suite(file, shape, name, tmp_path, record_property):
    which = f"{name} or not internal-testing"
    ours, stock = (outcomes(file, of, tmp_path / of[shape], which) for of in (OURS, STOCK))
    controls = {STOCK[shape]: stock}
    alone = ours.failed.keys() - stock.failed.keys()
    if alone and shape in KIN:
        family = KIN[shape]
        kin = outcomes(file, {**STOCK, shape: family}, tmp_path / family, which, alone)
        controls[f"those that failed, on {family}"] = kin
    suites.compare(f"{TOOL} {file}", ours, controls, record_property)


@pytest.mark.slow
def test_sample_of_a_suite(tmp_path):
    """Adapters for classes of tokens and for answers."""
    found = outcomes("token_classification_qa", OURS, tmp_path, "tiny-random-BertForSequenceClassification")
    assert (len(found.passed), found.failed, found.skipped) == (16, {}, {})
