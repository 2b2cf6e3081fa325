"""Sequences cut after `max_length` tokens, and the account of what was lost."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from tuner.data.encoding_report import EncodingReport, nothing_to_learn, too_much_lost

Encoded = dict[str, list[int]]
# Tokens that stay, those of them with a label, and as many of either that were cut off.
COUNTS = ("tokens", "supervised", "lost_tokens", "lost_supervised")


def cut(row: Encoded, max_length: int) -> tuple[list[int], list[int], list[int]]:
    """Ids and labels of the beginning of a sequence, up to its last label, and its `COUNTS`."""
    ids, labels = row["input_ids"], [-100, *row["labels"][1:]]  # nothing precedes the first token
    # What follows the last answer is seen by nothing that is learnt: it would only cost time.
    kept = next((t for t in range(min(len(ids), max_length), 0, -1) if labels[t - 1] != -100), 0)
    learnt, within = (len(part) - part.count(-100) for part in (labels, labels[:kept]))
    return ids[:kept], labels[:kept], [kept, within, max(len(ids) - max_length, 0), learnt - within]


def account(
    encoded: Dataset, rows: int, max_length: int, max_labels_lost: float, truncation_mode: str, name: str
) -> tuple[Dataset, EncodingReport]:
    """The examples that have a label, without their counts, and the account of `rows` rows: a batch without a label
    would have a loss of 0 / 0. A DataError where there is no label, or more of them are lost than allowed."""
    if len(encoded) == 0:
        raise nothing_to_learn(name)
    counted = [column for column in encoded.column_names if column in (*COUNTS, "identical")]
    counts = encoded.select_columns(counted).with_format("numpy")[:]
    kept = np.flatnonzero(counts["supervised"])
    sums = {column: int(numbers.sum()) for column, numbers in counts.items()}
    report = EncodingReport(rows, len(kept), unlabelled=len(encoded) - len(kept), **sums)
    if report.supervised == 0:
        raise nothing_to_learn(name)
    if report.share_labels_lost > max_labels_lost:
        raise too_much_lost(name, max_length, report.share_labels_lost, max_labels_lost, truncation_mode)
    encoded = encoded.remove_columns(counted)
    return encoded.select(kept) if report.unlabelled else encoded, report
