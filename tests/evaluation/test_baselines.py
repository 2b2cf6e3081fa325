"""The unigram model is the one that counts, and the entropy is what it should be."""

import math

import pytest
from datasets import Dataset

from tuner.evaluation.baselines.ngrams import unigram_loss
from tuner.evaluation.report import plot_losses


def rows(*labels):
    return Dataset.from_dict({"labels": [list(row) for row in labels]})


def test_unigram_loss_by_hand():
    # Counts 3 and 1 of a vocabulary of 4, plus one each: probabilities 4/8, 2/8, 1/8, 1/8.
    train, held_out = rows([-100, 0, 0], [0, 1, -100]), rows([-100, 0, 2])
    assert unigram_loss(train, held_out, 4) == pytest.approx((math.log(2) + math.log(8)) / 2)


def test_unseen_tokens_are_possible():
    assert math.isfinite(unigram_loss(rows([0, 0]), rows([3]), 4))


def test_the_plot_is_a_picture(tmp_path):
    log = [{"step": 0, "eval_loss": 8.3}, {"step": 1, "loss": 8.0}, {"step": 2, "loss": 7.0, "eval_loss": 7.1}]
    plot_losses(tmp_path / "loss.png", {"log": log, "comparison": {"nats": {"unigram model": 6.5}}}, "nats")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    plot_losses(tmp_path / "empty.png", {"log": [], "comparison": {}}, "nats")
