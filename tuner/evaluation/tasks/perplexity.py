"""Perplexity of texts, and of the answers in conversations, by a sliding window.

Every token is scored once. The first window scores all of its tokens; each further one the next `stride` tokens, with
what fits before them as context, `max_length - stride + 1` tokens or (the last one) more. A stride of `max_length` is
lm-eval's rolling likelihood. Of a text every token is scored, the first after the beginning token (or the end token, as
lm-eval has it), and no end; of a conversation the tokens that training learns, which are the answers with their ends.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Sequence

from tuner.data.collate import IGNORED
from tuner.data.tools import given
from tuner.data.turns import said
from tuner.errors import ArgumentError
from tuner.evaluation.metrics import text_sizes
from tuner.evaluation.subject import Subject
from tuner.evaluation.tasks.base import Baselines, Figures, Row, Samples, Task
from tuner.text.answers import learnt, training_tokenizer
from tuner.text.chat import encode_conversations, require_chat_template

Sequence_ = tuple[Sequence[int], Sequence[int]]
NAMES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


def windows(ids: Sequence[int], labels: Sequence[int], length: int, stride: int) -> Iterator[Sequence_]:
    """A sequence in windows of at most `length + 1` tokens, the last of which is only predicted; each label is in one.
    Windows without a label are left out."""
    start = 0
    while start < len(ids) - 1:
        end = min(start + (stride if start else length), len(ids) - 1)
        begin = end - length if start else 0
        wanted = [IGNORED] * (start - begin + 1) + list(labels[start + 1 : end + 1])
        if any(label != IGNORED for label in wanted):
            yield ids[begin : end + 1], wanted
        start = end


class Perplexity(Task):
    """exp of the mean negative log-likelihood: a token, a word (between white space) and a byte of UTF-8."""

    name = "perplexity"
    kinds = ("text", "messages")
    default = "builtin:bbc-news"
    figures = dict.fromkeys(NAMES, "lower")
    by_row = {"perplexity": "nats_a_token", "byte_perplexity": "nats_a_byte"}
    length = stride = 0

    def begin(self, subject: Subject) -> None:
        self.length = subject.longest(self.args.max_length)
        self.stride = self.args.stride or self.length
        if self.stride > self.length:
            raise ArgumentError(f"--stride {self.stride} would leave out tokens: {subject.name} reads {self.length}.")
        self.encoder = subject.tokenizer
        if self.data.kind == "messages":
            require_chat_template(subject.tokenizer)
            self.encoder, _ = training_tokenizer(subject.tokenizer)

    def score(self, subject: Subject, rows: list[Row]) -> list[Row]:
        encoded = self._texts(rows) if self.data.kind == "text" else self._conversations(rows)
        parts = [list(windows(ids, labels, self.length, self.stride)) for ids, labels in encoded]
        losses = iter(subject.losses([w for part in parts for w in part], self.args.per_device_eval_batch_size))
        samples = []
        for row, part in zip(rows, parts, strict=True):
            found = [next(losses) for _ in part]
            nats, tokens = float(sum(each.sum() for each in found)), sum(map(len, found))
            if self.data.kind == "text":
                sample: Row = {"text": row["text"]}
                words, size = text_sizes(row["text"])
            else:
                answers = [said(turn) for turn in row["messages"] if learnt(turn)]
                sample = {"answers": answers}
                words, size = map(sum, zip(*map(text_sizes, answers), strict=True)) if answers else (0, 0)
            if tokens and size:
                sample["scores"] = {"nll": nats, "tokens": tokens, "words": words, "bytes": size}
                sample["scores"] |= {"nats_a_token": nats / tokens, "nats_a_byte": nats / size}
            else:
                sample["left_out"] = "nothing to predict"
            samples.append(sample)
        return samples

    def _texts(self, rows: list[Row]) -> list[Sequence_]:
        tokenizer = self.encoder
        before = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        first = [] if before is None else [before]
        found = tokenizer([row["text"] for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
        return [([*first, *ids], [*[IGNORED] * len(first), *ids]) for ids in found]

    def _conversations(self, rows: list[Row]) -> list[Sequence_]:
        turns, names = [row["messages"] for row in rows], [f"{self.data.name}, row {row['source_row']}" for row in rows]
        beside = list(map(given, rows))
        found = encode_conversations(self.encoder, turns, eos_required=False, names=names, given=beside)
        return [(row["input_ids"], row["labels"]) for row in found]

    def summarise(self, samples: Samples) -> Figures:
        columns = ("nll", "tokens", "words", "bytes")
        of_rows = samples.of_metric("perplexity", lambda sample: {name: sample["scores"][name] for name in columns})
        return self.bootstrap(samples, of_rows, *NAMES)

    def baselines(self, samples: Samples) -> Baselines:
        """What a compressor that has read nothing else needs (LZMA)."""
        packer, size, packed = lzma.LZMACompressor(), 0, 0
        for sample in samples:
            for text in [sample["text"]] if "text" in sample else sample["answers"]:
                size, packed = size + len(text.encode()), packed + len(packer.compress(text.encode()))
        bits = 8 * (packed + len(packer.flush())) / size
        return {"bits_per_byte": {"lzma": bits}, "byte_perplexity": {"lzma": 2**bits}}

    def settings(self) -> Row:
        return {"max_length": self.length, "stride": self.stride}

    def notes(self) -> list[str]:
        kept = self.length - self.stride + 1
        said = [
            f"Windows of {self.length} tokens, stride {self.stride}: after the first window each token is predicted "
            f"from at least the {kept} token{'s' if kept > 1 else ''} before it. Every token is scored once."
        ]
        if self.data.kind == "messages":
            said.append("Scored are the answers' tokens, their end marks included; words and bytes are the answers'.")
        return [*said, "Only figures per word and per byte compare models of different tokenizers."]
