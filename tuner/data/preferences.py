"""Preference rows to `input_ids` and `labels` of each answer after its prompt.

Prompt and answer are one conversation, on the one path that `encode` takes too; only the answer's turns are labelled,
each with its end token. A sequence longer than `max_length` is cut at its end. A row of which an answer has no label
left is left out and counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import cache_key
from tuner.data.encoding_report import EncodingReport, nothing_to_learn, too_much_lost
from tuner.data.schema import Kind
from tuner.data.sources import SOURCE_ROW
from tuner.text import chat
from tuner.text.chat import encode_conversations, require_generation_marks

# Of each kind the columns of answers, and before what their encoded columns' names have.
ANSWERS: dict[Kind, dict[str, str]] = {
    "preference": {"chosen": "chosen_", "rejected": "rejected_"},
    "unpaired": {"completion": ""},
}
COUNTS = ("tokens", "supervised", "lost_tokens", "lost_supervised", "labelled", "identical")


def encode_preferences(
    rows: Dataset,
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_labels_lost: float = 0.05,
    num_proc: int | None = None,
    name: str = "the dataset",
) -> tuple[Dataset, EncodingReport]:
    """Encode canonical preference rows.

    Args:
        rows: canonical rows of the kind.
        kind: `preference` or `unpaired`.
        max_length: longest sequence of prompt and answer, in tokens.
        max_labels_lost: largest share of the answers' tokens that may be cut off.
        num_proc: processes; the result does not depend on it.

    Returns:
        Rows of `rows` (the source row) and, of preferences, `chosen_input_ids`, `chosen_labels`, `rejected_input_ids`
        and `rejected_labels`; of unpaired answers, `input_ids`, `labels` and `desirable`. Labels are -100 but in the
        answer. And the account, in which a sequence is a row, and `identical` are rows whose two answers are the same,
        which teach nothing and stay.

    Raises:
        DataError: more labels lost than allowed, or none left.
        ModelError: a chat template that cannot be trained with.
    """
    require_generation_marks(tokenizer)
    encoded = rows.map(
        _encode_batch,
        with_indices=True,
        batched=True,
        batch_size=500,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        fn_kwargs={
            "kind": kind,
            "tokenizer": tokenizer,
            "max_length": max_length,
            "name": name,
            "cache_key": cache_key(__file__, chat.__file__),
        },
        desc="Tokenizing",
    )
    found = encoded.select_columns(list(COUNTS)).with_format("numpy")
    counts = {column: np.asarray(found[:][column] if len(encoded) else [], np.int64) for column in COUNTS}
    kept = np.flatnonzero(counts["labelled"])
    report = EncodingReport(
        rows=len(rows),
        sequences=len(kept),
        tokens=int(counts["tokens"][kept].sum()),
        supervised=int(counts["supervised"][kept].sum()),
        lost_tokens=int(counts["lost_tokens"].sum()),
        lost_supervised=int(counts["lost_supervised"].sum()),
        unlabelled=len(rows) - len(kept),
        identical=int(counts["identical"].sum()),
    )
    if not len(kept):
        raise nothing_to_learn(name)
    if report.share_labels_lost > max_labels_lost:
        raise too_much_lost(name, max_length, report.share_labels_lost, max_labels_lost, "split")
    encoded = encoded.remove_columns(list(COUNTS))
    return encoded.select(kept) if report.unlabelled else encoded, report


def _encode_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str,
    cache_key: str,
) -> dict[str, Any]:
    """`cache_key` is for the cache alone."""
    numbers = batch.get(SOURCE_ROW, indices)
    lengths = [len(prompt) for prompt in batch["prompt"]]
    names = [f"{name}, row {number}" for number in numbers]
    columns: dict[str, Any] = {"rows": [[number] for number in numbers]}
    counts = np.zeros((len(COUNTS), len(numbers)), np.int64)
    counts[COUNTS.index("labelled")] = 1
    for answers, prefix in ANSWERS[kind].items():
        whole = [[*prompt, *answer] for prompt, answer in zip(batch["prompt"], batch[answers], strict=True)]
        rows = encode_conversations(tokenizer, whole, names=names, prompts=lengths)
        cut = [_cut(row["input_ids"], row["labels"], max_length) for row in rows]
        columns |= {
            f"{prefix}input_ids": [ids for ids, *_ in cut],
            f"{prefix}labels": [labels for _, labels, *_ in cut],
        }
        found = np.array([numbers for *_, numbers in cut]).T
        counts[:4] += found
        counts[4] &= found[1] > 0
    if kind == "unpaired":
        columns["desirable"] = batch["label"]
    else:
        counts[5] = [one == other for one, other in zip(batch["chosen"], batch["rejected"], strict=True)]
    return columns | dict(zip(COUNTS, counts.tolist(), strict=True))


def _cut(ids: list[int], labels: list[int], max_length: int) -> tuple[list[int], list[int], list[int]]:
    """The beginning of a sequence up to its last label, and the first four of `COUNTS`."""
    labels = [-100, *labels[1:]]  # nothing precedes the first token
    learnt = [t for t, label in enumerate(labels, 1) if label != -100]
    within = [t for t in learnt if t <= max_length]
    kept = within[-1] if within else min(len(ids), max_length)
    counts = [kept, len(within), max(len(ids) - max_length, 0), len(learnt) - len(within)]
    return ids[:kept], labels[:kept], counts
