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

from tuner.data import cut as cut_module
from tuner.data.cache_key import map_batches
from tuner.data.cut import COUNTS, account, cut
from tuner.data.encoding_report import EncodingReport
from tuner.data.schema import Kind
from tuner.data.sources import SOURCE_ROW
from tuner.text import chat
from tuner.text.chat import encode_conversations, require_generation_marks

# Of each kind the columns of answers, and before what their encoded columns' names have.
ANSWERS: dict[Kind, dict[str, str]] = {
    "preference": {"chosen": "chosen_", "rejected": "rejected_"},
    "unpaired": {"completion": ""},
}


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
    encoded = map_batches(
        rows,
        _encode_batch,
        [__file__, cut_module.__file__, chat.__file__],
        {"kind": kind, "tokenizer": tokenizer, "max_length": max_length, "name": name},
        with_indices=True,
        batch_size=500,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        desc="Tokenizing",
    )
    return account(encoded, len(rows), max_length, max_labels_lost, "split", name)


def _encode_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str,
) -> dict[str, Any]:
    numbers = batch.get(SOURCE_ROW, indices)
    lengths = [len(prompt) for prompt in batch["prompt"]]
    names = [f"{name}, row {number}" for number in numbers]
    columns: dict[str, Any] = {"rows": [[number] for number in numbers]}
    counts = []
    for answers, prefix in ANSWERS[kind].items():
        whole = [[*prompt, *answer] for prompt, answer in zip(batch["prompt"], batch[answers], strict=True)]
        rows = encode_conversations(tokenizer, whole, names=names, prompts=lengths)
        ids, labels, found = map(list, zip(*(cut(row, max_length) for row in rows), strict=True))
        columns |= {f"{prefix}input_ids": ids, f"{prefix}labels": labels}
        counts.append(np.array(found).T)
    total = np.sum(counts, axis=0)
    total[1] *= np.all([found[1] > 0 for found in counts], axis=0)  # without both answers' labels a row goes
    if kind == "unpaired":
        columns["desirable"] = batch["label"]
    else:
        columns["identical"] = [one == other for one, other in zip(batch["chosen"], batch["rejected"], strict=True)]
    return columns | dict(zip(COUNTS, total.tolist(), strict=True))
