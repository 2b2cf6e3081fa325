"""Perplexity: each token once, as lm-eval has it, and as training's loss has it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.tasks.helpers import json_of, run, samples_of, save_decoder, write_rows
from tests.text import samples
from tuner.errors import ModelError, TunerError
from tuner.evaluation.metrics import text_sizes
from tuner.evaluation.tasks.perplexity import windows


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("models") / "nano")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Some longer than the window many times, one of two words, one in Chinese."""
    found = [*(text * 3 for text in samples.texts()[:5]), "two words", "語言 模型"]
    return write_rows(tmp_path_factory.mktemp("data") / "texts.jsonl", [{"text": text} for text in found]), found


def rolling(folder, texts, length):
    """lm-eval's own log-likelihoods."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = HFLM(
        AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer, max_length=length, batch_size=3,
        add_bos_token=False,
    )  # fmt: skip
    requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
    return np.array(lm.loglikelihood_rolling(requests, disable_tqdm=True))


@pytest.mark.parametrize("length", [32, 256])
def test_it_is_lm_evals(nano, texts, length, tmp_path):
    path, found = texts
    flags = ("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "perplexity")
    [outcome] = run(*flags, "--max_length", length, "--output_dir", tmp_path)
    theirs, sizes = rolling(nano, found, length), np.array([text_sizes(text) for text in found])
    assert [s["scores"]["nll"] for s in samples_of(tmp_path, "perplexity")] == pytest.approx(-theirs, rel=1e-5)
    figures = outcome.figures["nano"]
    for name, size in zip(("word_perplexity", "byte_perplexity"), sizes.sum(axis=0), strict=True):
        assert figures[name].value == pytest.approx(math.exp(-theirs.sum() / size), rel=1e-3)
        assert figures[name].low < figures[name].value < figures[name].high and figures[name].n == len(found)
    assert outcome.settings == {"max_length": length, "stride": length}


def test_a_smaller_stride_is_more_context(nano, texts, tmp_path):
    """Against one forward pass a token."""
    path, found = texts
    flags = ("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "perplexity")
    run(*flags, "--max_length", 24, "--stride", 8, "--output_dir", tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(nano), AutoModelForCausalLM.from_pretrained(nano)
    ids = [tokenizer.bos_token_id, *tokenizer(found[0], add_special_tokens=False)["input_ids"]]
    nats = 0.0
    for place in range(1, len(ids)):
        scored = place if place <= 24 else min(place + 7 - (place - 25) % 8, len(ids) - 1)  # the end of its window
        start = 0 if place <= 24 else scored - 24
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1]
        nats -= float(logits.log_softmax(-1)[ids[place]])
    assert samples_of(tmp_path, "perplexity")[0]["scores"]["nll"] == pytest.approx(nats, rel=1e-5)


@given(st.integers(2, 60), st.integers(1, 12), st.data())
def test_every_token_is_scored_once(size, length, data):
    stride = data.draw(st.integers(1, length))
    ids = list(range(100, 100 + size))
    found = list(windows(ids, [-100, *ids[1:]], length, stride))
    assert [label for _, labels in found for label in labels if label != -100] == ids[1:]
    for number, (window, labels) in enumerate(found):
        assert len(window) == len(labels) <= length + 1
        context = next(place for place, label in enumerate(labels) if label != -100)
        assert context == 1 if number == 0 else len(window) == length + 1 and context >= length - stride + 1


def test_of_conversations_it_is_the_training_loss(nano, chats, tmp_path):
    from tuner.data.encode import encode_dataset
    from tuner.data.schema import canonicalize
    from tuner.data.sources import load_splits

    rows = canonicalize(load_splits(str(chats), test_split_size=12)[1], "chats")[1]
    tokenizer = AutoTokenizer.from_pretrained(nano)
    encoded, _ = encode_dataset(rows, "messages", tokenizer, 100_000)
    flags = ("--model_name_or_path", nano, "--dataset_name", chats, "--test_split_size", 12, "--stride", 64)
    run(*flags, "--tasks", "perplexity", "--output_dir", tmp_path)
    found = samples_of(tmp_path, "perplexity")
    assert [s["row"] for s in found] == rows["source_row"]
    labelled = [sum(label != -100 for label in row["labels"]) for row in encoded]
    assert [s["scores"]["tokens"] for s in found] == labelled
    model, short = AutoModelForCausalLM.from_pretrained(nano), labelled.index(min(labelled))
    row = encoded.with_format("torch")[short]
    with torch.no_grad():
        loss = model(row["input_ids"][None], labels=row["labels"][None]).loss
    assert found[short]["scores"]["nats_a_token"] == pytest.approx(float(loss), rel=1e-4)
    assert "answers' tokens" in (tmp_path / "eval" / "report.md").read_text()


def test_a_batch_is_its_rows(nano, texts, tmp_path):
    path, _ = texts
    flags = ("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "perplexity")
    run(*flags, "--per_device_eval_batch_size", 1, "--output_dir", tmp_path / "1")
    run(*flags, "--per_device_eval_batch_size", 5, "--output_dir", tmp_path / "5")
    one, five = ([s["scores"]["nll"] for s in samples_of(tmp_path / n, "perplexity")] for n in ("1", "5"))
    assert one == pytest.approx(five, rel=1e-5)


def test_what_it_cannot_use(nano, texts, tmp_path):
    path, _ = texts
    flags = ("--model_name_or_path", nano, "--output_dir", tmp_path, "--tasks", "perplexity", "--dataset_name")
    with pytest.raises(ModelError, match=r"--max_length 300: .*nano has 256 positions"):
        run(*flags, path, "--max_length", 300)
    with pytest.raises(TunerError, match="--stride 300 would leave out tokens"):
        run(*flags, path, "--stride", 300)
    with pytest.raises(TunerError, match="--stride 9 would leave out tokens: --max_length is 8"):
        run(*flags, path, "--stride", 9, "--max_length", 8)
    blank = write_rows(tmp_path / "blank.jsonl", [{"text": ""}, {"text": ""}])
    with pytest.raises(TunerError, match="none of the 2 rows can be used for perplexity; the first: nothing"):
        run(*flags, blank)


def test_the_file_of_figures(nano, texts, tmp_path):
    path, found = texts
    run("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "perplexity", "--output_dir", tmp_path)
    written = json_of(tmp_path, "perplexity")
    assert written["data"]["rows"] == len(found) and written["seed"] == 42
    bits = written["models"]["nano"]["figures"]["bits_per_byte"]
    assert bits["better"] == "lower" and bits["method"].startswith("bootstrap") and bits["n"] == len(found)
    assert 0.5 < written["baselines"]["bits_per_byte"]["lzma"] < 8
