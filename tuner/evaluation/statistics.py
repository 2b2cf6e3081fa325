"""How sure a figure is: intervals of 95 % and tests of differences.

Rows are few (hundreds) and often share a source (questions of one text), so that the usual standard error is too small.
What is done follows "Adding Error Bars to Evals" (Miller 2024, https://arxiv.org/abs/2411.00640: clustered errors,
paired differences) and "Don't Use the CLT in LLM Evals With Fewer Than a Few Hundred Datapoints" (Bowyer et al. 2025,
https://arxiv.org/abs/2503.01747). Left out: Bayesian intervals, and corrections for many comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.errors import DataError, from_extra

TAIL = 0.025
# Below so many rows, no normal approximation.
FEW = 300
PERMUTATIONS = 9999

Clusters = Sequence[Hashable] | np.ndarray | None


@dataclass(frozen=True)
class Estimate:
    """A figure with the 95 % interval that the sampling of rows leaves it.

    `low` and `high` are NaN where one row, or one cluster, says nothing of it. `n` rows; `method` names how.
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}], n = {self.n}"


def proportion(successes: float, n: float) -> Estimate:
    """A share of `n` rows with Wilson's score interval (1927), which has a width at 0 and 1 too.

    Raises:
        DataError: no rows, or more successes than rows.
    """
    if not 0 <= successes <= n or n <= 0:
        raise DataError(f"{successes} of {n} is no proportion.")
    z, p = -_stats().norm.ppf(TAIL), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(float(p), max(float(centre - half), 0.0), min(float(centre + half), 1.0), int(n), "Wilson")


def mean(values: Any, clusters: Clusters = None, seed: int = 0) -> Estimate:
    """The mean of values `(rows,)`; `clusters` `(rows,)` names each row's source where rows share one.

    Of zeros and ones Wilson's interval; in clusters, with as many rows as would leave the same doubt without them. Of
    other values the clustered standard error; without clusters the standard error of 300 rows or more, a bootstrap of
    fewer, which knows no doubt where all values are one.

    Raises:
        DataError: no value, one that is not finite, or not as many clusters.
    """
    found = _values(values)
    groups = _groups(clusters, len(found))
    if not np.isin(found, (0.0, 1.0)).all():
        return _interval(found, groups, seed)
    if groups is None:
        return proportion(float(found.sum()), len(found))
    p, units = float(found.mean()), int(groups.max()) + 1
    error = _clustered_error(found, groups) if units > 1 else 0.0
    # Where nothing varies, as many as there are sources.
    size = min(max(p * (1 - p) / error**2, 1.0), len(found)) if error else units
    shown = proportion(p * size, size)
    return Estimate(p, shown.low, shown.high, len(found), f"Wilson, rows as good as {size:.0f} of {units} clusters")


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, clusters: Clusters = None, seed: int = 0, rounds: int = 1000
) -> Estimate:
    """A figure of the whole set, with the percentiles of what it is on rows drawn anew; whole clusters are drawn where
    rows share a source. The percentiles are set outwards as a t distribution is beside a normal one (Hesterberg 2015,
    https://doi.org/10.1080/00031305.2015.1089789), without which few rows look surer than they are.

    Args:
        statistic: of row numbers, with repeats `(rows,)`. A DataError, or NaN, leaves a round out.

    Raises:
        DataError: no rows, not as many clusters, or what `statistic` raises of all rows.
    """
    groups = _groups(clusters, n)
    value, rng, stats = float(statistic(np.arange(n))), np.random.default_rng(seed), _stats()
    ends = np.arange(1, n) if groups is None else np.cumsum(np.bincount(groups))[:-1]
    members = np.split(np.arange(n) if groups is None else np.argsort(groups, kind="stable"), ends)
    units, name = len(members), "bootstrap" if groups is None else f"bootstrap of {len(members)} clusters"
    if units < 2:
        return Estimate(value, np.nan, np.nan, n, f"none, of one {'row' if groups is None else 'cluster'}")
    drawn = []
    for _ in range(rounds):
        chosen = rng.integers(0, units, units)
        try:
            drawn.append(float(statistic(chosen if groups is None else np.concatenate([members[c] for c in chosen]))))
        except DataError:
            drawn.append(np.nan)
    known = np.array(drawn)[~np.isnan(drawn)]
    tail = stats.norm.cdf(np.sqrt(units / (units - 1)) * stats.t.ppf(TAIL, units - 1))
    low, high = np.quantile(known, [tail, 1 - tail]) if 2 * len(known) > rounds else (np.nan, np.nan)
    if len(known) < rounds:
        name += f", undefined in {rounds - len(known)} of {rounds} rounds"
    return Estimate(value, float(low), float(high), n, name)


def paired(ones: Any, others: Any, clusters: Clusters = None, seed: int = 0) -> tuple[Estimate, float, str]:
    """Two models on the same rows: the mean of `ones - others` `(rows,)`, the two-sided p value of "both do as well",
    and the name of its test.

    Of zeros and ones McNemar's exact test, and Agresti and Min's interval (2005, https://doi.org/10.1002/sim.1781).
    Of other values, and wherever rows share a source, the interval of `mean` and a permutation test: the signs of the
    differences, a cluster's together, are exchanged in all ways where these are few, else in 9,999.

    Raises:
        DataError: as `mean`, or two numbers of rows.
    """
    first, second = _values(ones), _values(others)
    if len(first) != len(second):
        raise DataError(f"A paired difference needs the same rows of both: {len(first)} and {len(second)} were given.")
    groups, difference, stats = _groups(clusters, len(first)), first - second, _stats()
    if groups is None and np.isin([first, second], (0.0, 1.0)).all():
        won, lost = int((difference > 0).sum()), int((difference < 0).sum())
        p = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        return _difference_of_shares(won, lost, len(first)), float(p), "exact McNemar"
    estimate = _interval(difference, groups, seed)
    sums = difference if groups is None else np.bincount(groups, difference)
    sums, name = sums[sums != 0], "paired permutation" + ("" if groups is None else " of clusters")
    if len(sums) < 2:
        return estimate, 1.0, name
    done = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=PERMUTATIONS, vectorized=True,
        batch=max(1, 1_000_000 // len(sums)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return estimate, float(done.pvalue), name


def _difference_of_shares(won: int, lost: int, n: int) -> Estimate:
    # Half a row is added to each of the four cells.
    size, z = n + 2, -_stats().norm.ppf(TAIL)
    centre = (won - lost) / size
    half = z * np.sqrt((won + lost + 1) - (won - lost) ** 2 / size) / size
    return Estimate((won - lost) / n, max(float(centre - half), -1.0), min(float(centre + half), 1.0), n, "Agresti-Min")


def _interval(values: np.ndarray, groups: np.ndarray | None, seed: int) -> Estimate:
    # Of a mean of anything.
    n, value = len(values), float(values.mean())
    units = n if groups is None else int(groups.max()) + 1
    if units < 2 or (groups is None and n < FEW):
        return bootstrap(lambda rows: values[rows].mean(), n, groups, seed)
    half = -float(_stats().t.ppf(TAIL, units - 1)) * _clustered_error(
        values, np.arange(n) if groups is None else groups
    )
    method = "standard error" if groups is None else f"standard error of {units} clusters"
    return Estimate(value, value - half, value + half, n, method)


def _clustered_error(values: np.ndarray, groups: np.ndarray) -> float:
    # Miller 2024, equation 4, with the usual correction for the number of clusters: the standard error where each row
    # is its own.
    sums = np.bincount(groups, values - values.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))


def _stats() -> Any:
    return from_extra("scipy.stats", "eval")


def _values(values: Any) -> np.ndarray:
    try:
        found = np.asarray(values, float)
    except (ValueError, TypeError):
        found = np.empty(0)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise DataError("A mean needs a list of finite numbers, at least one.")
    return found


def _groups(clusters: Clusters, n: int) -> np.ndarray | None:
    # The clusters numbered from 0 in order of appearance.
    if n < 1:
        raise DataError("There is no row to estimate from.")
    if clusters is None:
        return None
    if len(clusters) != n:
        raise DataError(f"There are {len(clusters)} clusters for {n} rows: one a row is expected.")
    number: dict[Hashable, int] = {}
    given = clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
    return np.array([number.setdefault(cluster, len(number)) for cluster in given])
