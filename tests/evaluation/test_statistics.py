"""Intervals agree with scipy where it has them, and hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tuner.errors import DataError
from tuner.evaluation.metrics import load_metric
from tuner.evaluation.statistics import Estimate, bootstrap, mean, paired, proportion


@pytest.mark.parametrize("successes, n", [(0, 1), (0, 20), (7, 9), (20, 20), (499, 1000)])
def test_wilson_is_scipys(successes, n):
    found = proportion(successes, n)
    wanted = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert found.low < found.high and found == mean([1] * successes + [0] * (n - successes))
    assert (found.value, found.n, found.method) == (successes / n, n, "Wilson")


def test_many_rows_have_a_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean(values)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert (found.n, found.method) == (400, "standard error")
    own = mean(values, clusters=np.arange(400))  # each row its own source
    assert (own.low, own.high) == pytest.approx((low, high)) and own.method == "standard error of 400 clusters"


def test_the_clustered_error_is_that_of_the_clusters_means():
    # Clusters of one size: the error of the mean of their means.
    values = np.random.default_rng(0).normal(size=(40, 5))
    found = mean(values.ravel(), clusters=[f"text {number}" for number in range(40) for _ in range(5)])
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values.mean(1)))
    assert (found.low, found.high) == pytest.approx((low, high)) and found.n == 200


def test_few_rows_are_drawn_anew():
    values = np.random.default_rng(0).gamma(2, size=60)
    found, other = mean(values, seed=3), mean(values, seed=4)
    assert found.method == "bootstrap" and found == mean(values, seed=3) and found.low != other.low
    low, high = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


SOURCES = np.repeat(np.arange(30), 10)


def coverage(make, truth: float, rounds: int) -> float:
    """The share of intervals that hold the truth."""
    found = [make(np.random.default_rng(seed)) for seed in range(rounds)]
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in found]))


def in_clusters(rng: np.random.Generator, clusters: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers, whose chances differ between sources; 2 of 3 are right."""
    sources = np.repeat(np.arange(clusters), rows)
    return rng.binomial(1, rng.beta(2, 1, clusters)[sources]).astype(float), sources


def test_intervals_hold_the_truth():
    assert 0.93 < coverage(lambda rng: proportion(rng.binomial(30, 0.9), 30), 0.9, 1000) < 0.98
    assert coverage(lambda rng: drawn_anew(rng.beta(0.5, 0.5, 12)), 0.5, 200) > 0.91
    assert coverage(lambda rng: mean(*in_clusters(rng, 30, 10)), 2 / 3, 500) > 0.92
    assert coverage(lambda rng: mean(-2 * in_clusters(rng, 30, 10)[0], SOURCES), -4 / 3, 500) > 0.91
    assert coverage(lambda rng: mean(in_clusters(rng, 30, 10)[0]), 2 / 3, 500) < 0.85, "clusters cannot be left out"
    difference = 0.8 - (0.8 * 0.8 + 0.2 * 0.6)
    assert coverage(lambda rng: paired(*two_models(rng, 60))[0], difference, 1000) > 0.93


def drawn_anew(values: np.ndarray) -> Estimate:
    return bootstrap(lambda rows: values[rows].mean(), len(values), rounds=300)


def two_models(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models that agree on 80 % of the rows, one right in 80 % and one in 76."""
    ones = rng.binomial(1, 0.8, n)
    return ones, np.where(rng.random(n) < 0.8, ones, rng.binomial(1, 0.6, n))


def test_one_row_or_cluster_says_nothing():
    for found in (mean([0.3]), mean([0.3, 0.4], clusters=["a", "a"]), bootstrap(lambda rows: 1.0, 1)):
        assert np.isnan([found.low, found.high]).all() and found.method.startswith("none, of one")
    whole = mean([1, 1, 1], clusters=["a", "a", "a"])
    assert whole.value == 1 and (whole.low, whole.high) == (pytest.approx(proportion(1, 1).low), 1)


def test_clusters_that_all_are_right_are_no_more_than_clusters():
    found = mean(np.ones(100), clusters=np.repeat(np.arange(10), 10))
    assert found.low == pytest.approx(proportion(10, 10).low) and found.n == 100
    alike = mean(np.repeat([1.0, 0.0] * 10, 5), clusters=np.repeat(np.arange(20), 5))
    apart = proportion(10, 20)
    assert alike.high - alike.low == pytest.approx(apart.high - apart.low, rel=0.1)


def test_a_bootstrap_of_a_metric_of_the_whole_set():
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 3, 90)
    guessed = np.where(rng.random(90) < 0.7, wanted, rng.integers(0, 3, 90))
    metric = load_metric("f1")
    on_rows = metric.on_rows(predictions=guessed, references=wanted)
    found = bootstrap(lambda rows: on_rows(rows)["f1_macro"], 90, seed=1)
    assert found.value == pytest.approx(metric.compute(predictions=guessed, references=wanted)["f1_macro"])
    assert found.low < found.value < found.high and found.n == 90
    sources = np.repeat(np.arange(9), 10)
    assert bootstrap(lambda rows: on_rows(rows)["f1_macro"], 90, clusters=sources).method == "bootstrap of 9 clusters"
    # Whole clusters are drawn: the mean of something that is one in a cluster is that of the clusters.
    whole = bootstrap(lambda rows: sources[rows].mean(), 90, clusters=sources, seed=2)
    assert whole == Estimate(4.0, whole.low, whole.high, 90, "bootstrap of 9 clusters")
    alone = bootstrap(lambda rows: sources[rows].mean(), 90, seed=2)
    assert whole.high - whole.low > 2 * (alone.high - alone.low)


def test_rounds_without_a_value_are_named():
    area = load_metric("roc_auc").on_rows(predictions=[0.1, 0.4, 0.35, 0.8], references=[0, 0, 1, 1])
    found = bootstrap(lambda rows: area(rows)["roc_auc"], 4)
    assert found.value == 0.75 and "undefined in 1" in found.method and np.isfinite(found.low)


# ---- differences ----


def test_mcnemar_is_exact():
    ones, others = [1] * 12 + [0] * 3 + [1] * 5, [0] * 12 + [1] * 3 + [1] * 5
    estimate, p, name = paired(ones, others)
    assert name == "exact McNemar" and p == pytest.approx(stats.binomtest(3, 15).pvalue)
    assert (estimate.value, estimate.n) == (9 / 20, 20) and 0 < estimate.low < 9 / 20 < estimate.high
    back, p_back, _ = paired(others, ones)
    assert (back.low, back.high, p_back) == pytest.approx((-estimate.high, -estimate.low, p))


def test_equal_models_differ_in_nothing_but_are_not_proved_equal():
    estimate, p, _ = paired([1, 0] * 10, [1, 0] * 10)
    assert (estimate.value, p) == (0, 1) and estimate.low < -0.05 and estimate.high > 0.05
    estimate, p, name = paired([0.5, 0.7], [0.5, 0.7])
    assert (estimate.value, p, name) == (0, 1, "paired permutation")


def test_the_permutation_test():
    rng = np.random.default_rng(0)
    few = rng.normal(0.6, 1, 10)
    estimate, p, name = paired(few, np.zeros(10))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
    every = np.abs(few @ signs)
    assert p == pytest.approx((every >= abs(few.sum()) - 1e-12).mean()) and name == "paired permutation"
    assert estimate.value == pytest.approx(few.mean()) and estimate.method == "bootstrap"
    many = rng.normal(0.1, 1, 500)
    assert paired(many, np.zeros(500))[1] == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert paired(many, np.zeros(500), seed=5) == paired(many, np.zeros(500), seed=5)


def test_clusters_are_exchanged_together():
    # Ten texts with ten questions each; one model is better in one whole text. Row by row that looks like much.
    ones, sources = np.zeros(100), np.repeat(np.arange(10), 10)
    ones[:10] = 1
    _, alone, name = paired(ones, np.zeros(100))
    assert name == "exact McNemar" and alone < 0.01
    estimate, p, name = paired(ones, np.zeros(100), clusters=sources)
    assert name == "paired permutation of clusters" and p == 1 and estimate.low < 0 < estimate.high


# ---- bad input ----


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: proportion(3, 2), "3 of 2 is no proportion"),
        (lambda: proportion(0, 0), "0 of 0 is no proportion"),
        (lambda: mean([]), "list of finite numbers, at least one"),
        (lambda: mean([1.0, np.nan]), "list of finite numbers"),
        (lambda: mean(["a"]), "list of finite numbers"),
        (lambda: mean([[1.0], [2.0]]), "list of finite numbers"),
        (lambda: mean([1.0, 2.0], clusters=["a"]), "1 clusters for 2 rows"),
        (lambda: bootstrap(lambda rows: 0.0, 0), "no row to estimate from"),
        (lambda: paired([1], [1, 0]), "the same rows of both: 1 and 2"),
    ],
)
def test_bad_rows_are_one_message(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_clusters_may_be_named_by_anything():
    values = [0.1, 0.5, 0.9, 0.2]
    named = [mean(values, clusters=c) for c in ([1, 1, 2, 2], ["a", "a", 2, 2], [(1, "x")] * 2 + [(1, "y")] * 2)]
    assert named[0] == named[1] == named[2]
    assert str(named[0]).startswith("0.425 [") and str(named[0]).endswith("n = 4")
