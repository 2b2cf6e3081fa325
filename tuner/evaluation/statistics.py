"""How sure a figure is: intervals of 95 % and tests of differences.

Rows are few (hundreds) and often share a source (questions of one text), so that the usual standard error is too small.
What is done follows "Adding Error Bars to Evals" (Miller 2024, https://arxiv.org/abs/2411.00640: clustered errors, paired
differences) and "Don't Use the CLT in LLM Evals With Fewer Than a Few Hundred Datapoints" (Bowyer et al. 2025,
https://arxiv.org/abs/2503.01747). Left out: Bayesian intervals and corrections for many comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.errors import DataError

CONFIDENCE = 0.95
# Below so many rows, no normal approximation.
FEW = 300
PERMUTATIONS = 9999
NO_INTERVAL = "no interval from one"

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


def proportion(successes: float, n: float, method: str = "Wilson", rows: int | None = None) -> Estimate:
    """A share of `n` rows with Wilson's score interval (1927), which stays within 0 and 1 and is open at neither end.

    Raises:
        DataError: no rows, or more successes than rows.
    """
    from scipy.stats import norm

    if not 0 <= successes <= n or n <= 0:
        raise DataError(f"{successes} of {n} is no proportion.")
    z, p = norm.ppf((1 + CONFIDENCE) / 2), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(float(p), max(float(centre - half), 0.0), min(float(centre + half), 1.0), rows or int(n), method)


def mean(values: Any, clusters: Clusters = None, seed: int = 0) -> Estimate:
    """The mean of values `(rows,)`. Of zeros and ones: Wilson's interval, with the number of rows that the clustering
    leaves where `clusters` `(rows,)` names each row's source. Else: clustered standard errors; without clusters a
    bootstrap of fewer than 300 rows, the standard error of more.

    Raises:
        DataError: no value, one that is not finite, or columns of two lengths.
    """
    found, groups = _values(values), _groups(clusters, len(values))
    if np.isin(found, (0.0, 1.0)).all():
        if groups is None:
            return proportion(float(found.sum()), len(found))
        p, many = float(found.mean()), int(groups.max()) + 1
        error = _clustered_error(found, groups) if many > 1 else 0.0
        # How many rows drawn one by one would leave as much doubt; where nothing varies, as many as there are sources.
        size = float(np.clip(p * (1 - p) / error**2, 1, len(found))) if error else float(many)
        return proportion(p * size, size, "Wilson, rows discounted for clusters", len(found))
    return _interval(found, groups, seed)


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, clusters: Clusters = None, seed: int = 0, rounds: int = 1000
) -> Estimate:
    """A figure of the whole set, with the percentiles of what it is on rows drawn anew; whole clusters are drawn where
    rows share a source. The percentiles are set outwards as a t distribution is beside a normal one (Hesterberg 2015,
    https://doi.org/10.1080/00031305.2015.1089789), without which few rows look surer than they are.

    Args:
        statistic: of row numbers, with repeats `(rows,)`. A DataError, or NaN, leaves a round out.

    Raises:
        DataError: no rows, or what `statistic` raises of all rows.
    """
    from scipy.stats import norm, t

    groups = _groups(clusters, n)
    value, rng = float(statistic(np.arange(n))), np.random.default_rng(seed)
    members = None if groups is None else np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    units = n if members is None else len(members)
    if units < 2:
        return Estimate(value, np.nan, np.nan, n, f"{NO_INTERVAL} {'row' if members is None else 'cluster'}")
    drawn = []
    for _ in range(rounds):
        chosen = rng.integers(0, units, units)
        try:
            drawn.append(float(statistic(chosen if members is None else np.concatenate([members[c] for c in chosen]))))
        except DataError:
            drawn.append(np.nan)
    known = np.asarray(drawn)[~np.isnan(drawn)]
    tail = norm.cdf(np.sqrt(units / (units - 1)) * t.ppf((1 - CONFIDENCE) / 2, units - 1))
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) > rounds / 2 else (np.nan, np.nan)
    method = "bootstrap" if members is None else f"bootstrap of {units} clusters"
    undefined = f", undefined in {rounds - len(known)} of {rounds} rounds" if len(known) < rounds else ""
    return Estimate(value, float(low), float(high), n, method + undefined)


def paired(ones: Any, others: Any, clusters: Clusters = None, seed: int = 0) -> tuple[Estimate, float, str]:
    """Two models on the same rows: the mean of `ones - others` `(rows,)`, the two-sided p value that the models do as
    well as each other, and the name of its test. For zeros and ones McNemar's (exact); else, and wherever rows share
    a source, the signs of the differences, a cluster's together, are exchanged at random (all ways, where few).

    Raises:
        DataError: as `mean`.
    """
    from scipy.stats import binomtest, permutation_test

    first, second = _values(ones), _values(others)
    if len(first) != len(second):
        raise DataError(f"A paired difference needs the same rows of both: {len(first)} and {len(second)} were given.")
    groups, difference = _groups(clusters, len(first)), first - second
    estimate = _interval(difference, groups, seed)
    if groups is None and np.isin([first, second], (0.0, 1.0)).all():
        won, lost = int((difference > 0).sum()), int((difference < 0).sum())
        p = binomtest(won, won + lost).pvalue if won + lost else 1.0
        return estimate, float(p), "exact McNemar"
    sums = difference if groups is None else np.bincount(groups, difference)
    sums, name = sums[sums != 0], "paired permutation" + ("" if groups is None else " of clusters")
    if not len(sums):
        return estimate, 1.0, name
    done = permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=PERMUTATIONS, vectorized=True,
        batch=max(1, 1_000_000 // len(sums)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return estimate, float(done.pvalue), name


def _interval(values: np.ndarray, groups: np.ndarray | None, seed: int) -> Estimate:
    # Of a mean of anything.
    from scipy.stats import t

    n, value = len(values), float(values.mean())
    units = n if groups is None else int(groups.max()) + 1
    if units < 2 or (groups is None and n < FEW):
        return bootstrap(lambda rows: values[rows].mean(), n, groups, seed)
    error = float(values.std(ddof=1) / np.sqrt(n)) if groups is None else _clustered_error(values, groups)
    half = float(t.ppf((1 + CONFIDENCE) / 2, units - 1)) * error
    method = "standard error" if groups is None else f"standard error of {units} clusters"
    return Estimate(value, value - half, value + half, n, method)


def _clustered_error(values: np.ndarray, groups: np.ndarray) -> float:
    # Miller 2024, equation 4, with the usual correction for the number of clusters.
    sums = np.bincount(groups, values - values.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))


def _values(values: Any) -> np.ndarray:
    found = np.asarray(values, float)
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
        raise DataError(f"{len(clusters)} clusters for {n} rows: one a row is expected.")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(c, len(number)) for c in (np.asarray(clusters).tolist())])
