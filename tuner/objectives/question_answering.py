"""Where in a text the answer to a question is, if it is there; from all weights, an adapter, or a head alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.table import Table
from rich.text import Text
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.data.collate import IGNORED
from tuner.data.draws import FILLER
from tuner.data.sources import SOURCE_ROW
from tuner.errors import ArgumentError, DataError, notice
from tuner.evaluation.baselines.words import nearest_sentences
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import Batch, Row, Sums
from tuner.objectives.heads import WithHead
from tuner.objectives.records import Comparison, Examples, Outcome, Predictions, Rows

# As transformers' run_qa.py has them.
DOC_STRIDE, MAX_ANSWER_LENGTH = 128, 30
# No token of a context.
NOWHERE = -1


class QuestionAnswering(WithHead):
    """question_answering: the first and the last token of the answer, each by cross-entropy over a window's tokens
    (Devlin et al. 2018, sections 4.2 and 4.3, https://arxiv.org/abs/1810.04805).

    A window is the whole question and as much of the context as fits; two neighbours share `--doc_stride` tokens. Where
    a window does not hold the answer, both are its [CLS]; without such a token its first one, of which a causal model
    learns a score that is the same for all texts, to which the others' are compared.
    """

    name = "question_answering"
    kinds = ("question",)
    model = "reader"
    loss_unit = "nats a window"

    def __init__(self, args: ClassifyArguments, tokenizer: PreTrainedTokenizerBase, *more: Any, **named: Any):
        super().__init__(args, tokenizer, *more, **named)
        self.has_unanswerable = self.labels.counts[1] > 0
        if args.null_score_diff_threshold is not None and not self.has_unanswerable:
            raise ArgumentError("--null_score_diff_threshold: every training question has an answer, so one is given.")
        self.threshold = args.null_score_diff_threshold or 0.0
        self.longest_answer = args.max_answer_length or MAX_ANSWER_LENGTH
        self.stride = DOC_STRIDE if args.doc_stride is None else args.doc_stride

    # ---- data ----

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, None]:
        arguments = {
            **{"tokenizer": self.tokenizer, "max_length": self.args.max_length, "name": name, "stride": self.stride},
        }
        how = {"num_proc": self.args.dataset_num_proc, "remove_columns": rows.column_names, "desc": "Tokenizing"}
        examples = map_batches(rows, encode_windows, [__file__], arguments, with_indices=True, **how)
        if note := self.unreachable(rows, examples):
            notice(f"{name}: {note}")
        self.reckon(examples)
        return examples, None

    def unreachable(self, rows: Dataset, examples: Dataset) -> str | None:
        """What to say of answers that cannot be given, or nothing."""
        kept, asked = examples.with_format(None), sum(map(bool, rows["answers"]))
        has = np.zeros(len(rows), bool)
        spans = [
            (q, last - first)
            for q, (first, last), null in zip(kept["question"], kept["labels"], kept["null"], strict=True)
            if first != null
        ]
        has[[question for question, _ in spans]] = True
        long = len({question for question, more in spans if more >= self.longest_answer})
        split = asked - int(has.sum())
        parts = [
            f"{split:,} lie in no window as a whole and are learnt as no answer (--doc_stride)" if split else "",
            f"{long:,} are longer than --max_answer_length {self.longest_answer}" if long else "",
        ]
        said = "; ".join(filter(None, parts))
        return f"Of {asked:,} questions' answers {said}." if said else None

    def __call__(self, rows: list[Row]) -> Batch:
        labels = torch.as_tensor(np.stack([row["labels"] for row in rows]))
        labels[torch.tensor([row["draw"] == FILLER for row in rows])] = IGNORED
        return self.inputs(rows) | {"labels": labels, "lengths": torch.tensor([len(row["input_ids"]) for row in rows])}

    # ---- loss and evaluation ----

    def counts(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"][:, 0] != IGNORED).sum()

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        lengths = inputs.pop("lengths")
        real = labels[:, 0] != IGNORED
        scores, targets = span_scores(self.outputs(model, **inputs), lengths)[real], labels[real]
        loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum")
        if training:
            return {"loss": loss}
        right = scores.argmax(-1) == targets
        found = {"start_accuracy": right[:, 0], "end_accuracy": right[:, 1], "exact": right.all(dim=1)}
        return {"loss": loss, "count": real.sum(), **{name: hits.sum() for name, hits in found.items()}}

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside the sentence that shares most words with the question, and no answer where that may be right."""
        known = nearest_sentences(outcome.rows.eval, self.has_unanswerable)
        trained = {name: {"trained": outcome.figures[name]["value"]} for name in known if name in outcome.figures}
        best = dict(sorted(known["f1"].items(), key=lambda item: item[1]))
        if not trained:  # the report could not be made
            return {**known, self.loss_unit: outcome.before_and_after("loss")}
        return {
            "exact_match": known["exact_match"] | trained["exact_match"],
            **self.beside(outcome, best, trained["f1"], "f1"),
        }

    def predict(self, outcome: Outcome) -> Predictions:
        """The best answer of all windows of each validation question, and how likely the model took it."""
        rows, examples = outcome.rows.eval, outcome.examples.eval.with_format(None)
        contexts, questions = rows["context"], rows["question"]

        def scored() -> Iterator[tuple[np.ndarray, dict[str, list[Any]]]]:
            seen = 0
            for output, batch in self.held_out_outputs(outcome.model, outcome.examples):
                windows = examples[seen : seen + len(batch["lengths"])]
                seen += len(batch["lengths"])
                yield span_scores(output, batch["lengths"]).cpu().numpy(), windows

        best, none = best_answers(scored(), contexts, self.longest_answer)
        gives = [
            (score, chance, text) if not self.has_unanswerable or null[0] - score <= self.threshold else (*null, "")
            for (score, chance, text), null in zip(best, none, strict=True)
        ]
        said, chances = [text for *_, text in gives], np.array([chance for _, chance, _ in gives])
        targets = [[answer["text"] for answer in answers] for answers in rows["answers"]]
        notes = tuple(filter(None, [self.unreachable(rows, outcome.examples.eval)]))
        names = () if not self.has_unanswerable else ("answer", "no answer")
        return Predictions(
            list(questions), chances, targets, names, self.problem, np.array(contexts), said=said, notes=notes
        )

    # ---- the dry run ----

    def describe(self, rows: Rows, examples: Examples) -> Table:
        table = Table("", "train", "eval", title=f"Data: {self.problem}", title_justify="left")
        both = [(rows.train, examples.train.with_format(None)), (rows.eval, examples.eval.with_format(None))]
        table.add_row("questions", *(f"{len(asked):,}" for asked, _ in both))
        table.add_row("without an answer", *(f"{sum(not each for each in asked['answers']):,}" for asked, _ in both))
        table.add_row("windows", *(f"{len(windows):,}" for _, windows in both))
        table.add_row(
            "windows with the answer",
            *(f"{sum(span[0] != null for span, null in zip(w['labels'], w['null'], strict=True)):,}" for _, w in both),
        )
        return table

    def show(self, draws: list[Row]) -> Any:
        for number, draw in enumerate(draws):
            (first, last), ids = draw["labels"].tolist(), draw["input_ids"].tolist()
            text = Text(f"\nExample {number}:\n", style="bold")
            text.append(self.tokenizer.decode(ids), style="not bold dim").append("\nis to give\n")
            said = "no answer" if first == draw["null"] else self.tokenizer.decode(ids[first : last + 1])
            yield text.append(f"{said}\n", style="not bold green")


def span_scores(output: Any, lengths: torch.Tensor) -> torch.Tensor:
    """Of each token the logits of being the answer's first and last: `(windows, 2, time)`, none for padding."""
    both = torch.stack([output.start_logits, output.end_logits], dim=1).float()
    padding = torch.arange(both.shape[-1], device=both.device) >= lengths.to(both.device)[:, None]
    return both.masked_fill(padding[:, None], -torch.inf)


def best_answers(
    scored: Iterable[tuple[np.ndarray, dict[str, list[Any]]]], contexts: Sequence[str], longest: int
) -> tuple[list[tuple[float, float, str]], list[tuple[float, float]]]:
    """Of each question the best span of at most `longest` tokens over all windows, and no answer in any of them.

    Args:
        scored: `span_scores` of some windows, and these windows as `encode_windows` gives them.

    Returns:
        The score, its probability in its window, and the text; the score and the probability.
    """
    best, none = [(-np.inf, 0.0, "")] * len(contexts), [(np.inf, 0.0)] * len(contexts)
    for scores, windows in scored:
        for number, found in enumerate(_best_spans(scores, windows, longest)):
            question, null, (score, chance, first, last) = windows["question"][number], *found
            none[question] = min(none[question], null)
            if score > best[question][0]:
                span = contexts[question][windows["starts"][number][first] : windows["ends"][number][last]].strip()
                best[question] = (score, chance, span)
    return best, none


def _best_spans(scores: np.ndarray, windows: dict[str, list[Any]], longest: int) -> list[tuple[Any, Any]]:
    """Of each window the score and the probability of no answer, and those of the best of all spans of the context
    that have at most `longest` tokens, with its first and last token."""
    log_sums = np.logaddexp.reduce(scores, axis=2).sum(axis=1)
    time, every = scores.shape[2], np.arange(len(scores))
    outside = np.ones((len(scores), time), bool)
    for line, starts in zip(outside, windows["starts"], strict=True):
        line[: len(starts)] = np.array(starts) == NOWHERE
    first, last = (np.where(outside, -np.inf, part) for part in (scores[:, 0], scores[:, 1]))
    best, where = np.full(len(scores), -np.inf), np.zeros((len(scores), 2), int)
    for more in range(min(longest, time)):
        spans = first[:, : time - more] + last[:, more:]
        begin = spans.argmax(axis=1)
        better = spans[every, begin] > best
        best[better] = spans[every, begin][better]
        where[better] = np.stack([begin, begin + more], axis=1)[better]
    null = scores[every, :, windows["null"]].sum(axis=1)
    chances = [np.exp(each - log_sums) for each in (null, best)]
    found = zip(null, best, *chances, where.tolist(), strict=True)
    return [((a, p), (b, q, *span)) for a, b, p, q, span in found]


def encode_windows(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
    name: str,
) -> dict[str, list[Any]]:
    """Windows of questions: tokens, `labels` (the answer's first and last token), the `question` they are of by number,
    the token that is `null`, and of each token of the context where in it it `starts` and `ends`."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    alone = tokenizer(batch["question"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    for ids, number in zip(alone, batch.get(SOURCE_ROW, indices), strict=True):
        room = max_length - len(ids) - special
        if room <= stride:
            raise DataError(
                f"{name}, row {number}: the question has {len(ids)} tokens, so that --max_length {max_length} leaves "
                f"{max(room, 0)} for the context, which is to be more than --doc_stride {stride}."
            )
    how = {"return_overflowing_tokens": True, "return_offsets_mapping": True}
    encoded = tokenizer(
        batch["question"], batch["context"], truncation="only_second", max_length=max_length, stride=stride, **how
    )
    found: dict[str, list[Any]] = {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}
    found |= {"labels": [], "question": [], "null": [], "starts": [], "ends": []}
    sources = encoded["overflow_to_sample_mapping"]
    for window, (ids, source) in enumerate(zip(encoded["input_ids"], sources, strict=True)):
        offsets, parts = encoded["offset_mapping"][window], encoded.sequence_ids(window)
        places = [pair if part == 1 else (NOWHERE, NOWHERE) for pair, part in zip(offsets, parts, strict=True)]
        null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        spans = (_span(places, answer) for answer in batch["answers"][source])
        found["labels"].append(next(filter(None, spans), (null, null)))
        found["question"].append(indices[source])
        found["null"].append(null)
        for column, values in zip(("starts", "ends"), zip(*places, strict=True), strict=True):
            found[column].append(list(values))
    return found


def _span(places: list[tuple[int, int]], answer: dict[str, Any]) -> tuple[int, int] | None:
    """The first and the last token of an answer; None where the window does not hold all of it."""
    text = answer["text"]
    start = answer["start"] + len(text) - len(text.lstrip())
    end = answer["start"] + len(text.rstrip())
    inside = [token for token, (begin, stop) in enumerate(places) if begin < end and stop > start and begin != stop]
    if not inside or places[inside[0]][0] > start or places[inside[-1]][1] < end:
        return None
    return inside[0], inside[-1]
