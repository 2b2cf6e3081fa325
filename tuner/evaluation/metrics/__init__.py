"""Metrics as `evaluate.Metric` without a network: thin layers over sacrebleu, rouge-score and scikit-learn.

`evaluate.load("accuracy")` fetches a script from the Hub when it runs. Those here are part of the package; any other
name still goes to `evaluate.load`.
"""

from __future__ import annotations

from typing import Any

import evaluate

from tuner.errors import ArgumentError, nearest, one_line
from tuner.evaluation.metrics.base import SummedMetric, TunerMetric
from tuner.evaluation.metrics.labels import F1, Accuracy, Calibration, MatthewsCorrelation, RocAuc
from tuner.evaluation.metrics.scores import PairAccuracy, Perplexity, Regression, text_sizes
from tuner.evaluation.metrics.tags import EntityF1
from tuner.evaluation.metrics.texts import Bleu, Chrf, DistinctN, ExactMatch, Rouge, SelfRepetition, Squad

__all__ = ["METRICS", "SummedMetric", "TunerMetric", "load_metric", "text_sizes"]

METRICS: dict[str, type[TunerMetric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "matthews_correlation": MatthewsCorrelation,
    "roc_auc": RocAuc,
    "calibration": Calibration,
    "exact_match": ExactMatch,
    "squad": Squad,
    "entity_f1": EntityF1,
    "bleu": Bleu,
    "chrf": Chrf,
    "rouge": Rouge,
    "perplexity": Perplexity,
    "distinct_n": DistinctN,
    "self_repetition": SelfRepetition,
    "pair_accuracy": PairAccuracy,
    "regression": Regression,
}


def load_metric(name: str, **config: Any) -> evaluate.EvaluationModule:
    """A metric by name: one of `METRICS`, with its options, or what `evaluate.load` finds (a Hub id or a script).

    Raises:
        ArgumentError: an unknown name or option.
    """
    if name in METRICS:
        return METRICS[name](**config)
    try:
        return evaluate.load(name, **config)
    except Exception as error:  # whatever a script or the connection raises
        said = f"evaluate.load finds none of that name: {one_line(error)}"
        raise ArgumentError(f"No metric {name}.{nearest(name, METRICS)} Ours: {', '.join(METRICS)}; {said}") from None
