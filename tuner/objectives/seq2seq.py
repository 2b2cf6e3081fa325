"""seq2seq: a text out of another, as in translation and summarising, by any encoder-decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.data.encoding_report import EncodingReport
from tuner.data.sources import SOURCE_ROW
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.evaluation.baselines.pairs import lead_length, lead_sentences
from tuner.loading.generation import generate_texts
from tuner.model import TunerPreTrainedModel
from tuner.objectives.arguments import Seq2SeqArguments
from tuner.objectives.base import Batch, Objective, Row, Sums, own_class
from tuner.objectives.denoise import decoded
from tuner.objectives.masked_lm import labelled
from tuner.objectives.records import Comparison, Outcome
from tuner.text import pairs
from tuner.text.pairs import encode_texts
from tuner.text.words import bleu_tokenizer

SCORES = {"BLEU": "bleu", "chrF": "chrf", "ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
# How many times as long as its target a source of summaries is, at least.
SUMMARY = 1.5
COUNTS = ("tokens", "supervised", "lost_tokens", "lost_supervised")


class Seq2Seq(Objective[Seq2SeqArguments]):
    """seq2seq: `-log p(target | source)` a token (Sutskever et al. 2014, https://arxiv.org/abs/1409.3215). What the
    decoder begins with, and how its input is shifted, is the model's own."""

    arguments = Seq2SeqArguments
    name = "seq2seq"
    kinds = ("pair",)
    vocabulary = "seq2seq"
    model, mixes = "encoder-decoder", True
    loss_unit = "nats a target token"

    def __init__(self, args: Seq2SeqArguments, tokenizer: PreTrainedTokenizerBase, *more: Any):
        super().__init__(args, tokenizer, *more)
        # Tokenizers of models for many languages put the language's token before or behind a text.
        self.speaks = bool(args.source_lang) and hasattr(tokenizer, "src_lang")
        if self.speaks:
            for flag in ("source_lang", "target_lang"):
                if getattr(args, flag) not in tokenizer.get_vocab():
                    raise ModelError(f"--{flag} {getattr(args, flag)}: the tokenizer has no such language.")
            tokenizer.src_lang, tokenizer.tgt_lang = args.source_lang, args.target_lang

    @classmethod
    def check(cls, args: Any, processes: int) -> None:
        super().check(args, processes)
        if bool(args.source_lang) != bool(args.target_lang):
            raise ArgumentError("--source_lang and --target_lang go together.")
        for flag in ("packing", "padding_free", "chat_template_path"):
            if getattr(args, flag) is not None:
                raise ArgumentError(f"--{flag} is for causal models: of source and target each has its own row.")

    def check_model(self, model: PreTrainedModel) -> None:
        if any(name.endswith("router") for name, _ in model.named_modules()):
            raise ModelError("This method has no loss that balances experts: take a model without them.")
        if self.args.num_beams is not None:
            model.generation_config.num_beams = self.args.num_beams
        if self.args.source_prefix:
            model.config.prefix = self.args.source_prefix  # where whoever generates with the model finds it
        if self.speaks:
            language = self.tokenizer.convert_tokens_to_ids(self.args.target_lang)
            model.generation_config.forced_bos_token_id = language

    # ---- data ----

    def sources(self, texts: list[str]) -> list[list[int]]:
        """Texts as the encoder reads them, the prefix before each."""
        texts = [self.args.source_prefix + text for text in texts]
        return encode_texts(self.tokenizer, texts, self.args.max_source_length)[0]

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport]:
        args = self.args
        how = {"tokenizer": self.tokenizer, "prefix": args.source_prefix, "name": name, "mode": args.truncation_mode}
        how["longest"] = (args.max_source_length, args.max_target_length)
        how["languages"] = (args.source_lang, args.target_lang)  # which the tokenizer's own hash need not know
        options = {"remove_columns": rows.column_names, "num_proc": args.dataset_num_proc, "desc": "Tokenizing"}
        encoded = map_batches(rows, _encode, [__file__, pairs.__file__], how, with_indices=True, **options)
        counts = encoded.select_columns(list(COUNTS)).with_format("numpy")[:]
        kept = np.flatnonzero(counts["supervised"])
        sums = {column: int(numbers.sum()) for column, numbers in counts.items()}
        report = EncodingReport(len(rows), len(kept), unlabelled=len(rows) - len(kept), **sums)
        if not len(kept):
            raise DataError(f"{name}: in every row source or target is blank: there is nothing to learn.")
        if report.share_labels_lost > args.max_labels_lost:
            raise DataError(
                f"{name}: cutting targets to --max_target_length {args.max_target_length} would lose "
                f"{report.share_labels_lost:.0%} of their tokens; --max_labels_lost allows {args.max_labels_lost:.0%}. "
                "Raise one of the two."
            )
        return encoded.remove_columns(list(COUNTS)).select(kept), report

    def __call__(self, rows: list[Row]) -> Batch:
        return self.padded([{name: row[name] for name in ("input_ids", "labels")} for row in rows], rows)

    # ---- loss ----

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        if isinstance(model, TunerPreTrainedModel):
            return super().sums(model, labels, training=training, **inputs)
        # All logits, for some models do more to them than their head does.
        logits = own_class(model).forward(model, labels=labels, use_cache=False, **inputs).logits
        states, targets = labelled(logits, labels)
        smoothing = self.label_smoothing if training else 0.0
        loss = F.cross_entropy(states.float(), targets, reduction="sum", label_smoothing=smoothing)
        return {"loss": loss, "count": targets.new_full((), len(targets))}

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        return decoded(model, labels, inputs)

    # ---- what it came to ----

    def compare(self, outcome: Outcome) -> Comparison:
        """What both models write for validation rows, beside the source as it is and, for summaries, its first
        sentences."""
        held_out = outcome.rows.eval
        rows = held_out.select(range(min(self.args.max_predict_samples, len(held_out))))
        rows = [row for row in rows if row["source"].strip() and row["target"].strip()]
        sources, targets = [row["source"] for row in rows], [row["target"] for row in rows]
        written = {"copying": sources}
        if sum(map(len, sources)) > SUMMARY * sum(map(len, targets)):
            count = lead_length(outcome.rows.train)
            written[f"first {count} sentence{'s' * (count > 1)}"] = [lead_sentences(text, count) for text in sources]
        untrained = outcome.untrained().to(outcome.model.device)
        self.check_model(untrained)
        for name, model in (("untrained", untrained), ("trained", outcome.model)):
            written[name] = self.write(model, sources)
        scores = {who: _scores(texts, targets) for who, texts in written.items()}
        found = {name: {who: score[name] for who, score in scores.items()} for name in scores["trained"]}
        return {**found, self.loss_unit: outcome.before_and_after("loss")}

    def write(self, model: PreTrainedModel, sources: list[str]) -> list[str]:
        """What a model makes of each text."""
        args = self.args
        how: Any = {"max_new_tokens": args.max_target_length, "batch_size": args.per_device_eval_batch_size}
        found = dict(generate_texts(model, self.tokenizer, self.sources(sources), **how))
        return [found[number].strip() for number in range(len(sources))]


def _scores(texts: list[str], targets: list[str]) -> dict[str, float]:
    from tuner.evaluation.metrics import load_metric  # the library evaluate takes a second to import

    found: dict[str, float] = {}
    for metric in (load_metric("bleu", tokenize=bleu_tokenizer(targets)), load_metric("chrf"), load_metric("rouge")):
        metric.add_batch(predictions=texts, references=targets)
        found |= metric.compute()
    return {name: found[key] for name, key in SCORES.items()}


def _encode(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: Any,
    prefix: str,
    longest: tuple[int, int],
    languages: Any,
    mode: str,
    name: str,
) -> dict[str, list[Any]]:
    sources, lost = encode_texts(tokenizer, [prefix + text for text in batch["source"]], longest[0])
    targets, unsaid = encode_texts(tokenizer, batch["target"], longest[1], target=True)
    counts: dict[str, list[int]] = {column: [] for column in COUNTS}
    for place, number in enumerate(batch.get(SOURCE_ROW, indices)):
        for cut, limit, flag in ((lost[place], longest[0], "source"), (unsaid[place], longest[1], "target")):
            if cut and mode == "error":
                raise DataError(f"{name}, row {number}: {cut + limit} tokens, longer than --max_{flag}_length {limit}.")
        read, said = len(sources[place]), len(targets[place])
        blank = not batch["source"][place].strip() or not batch["target"][place].strip()
        found = (0,) * 4 if blank else (read + said, said, lost[place] + unsaid[place], unsaid[place])
        for column, count in zip(COUNTS, found, strict=True):
            counts[column].append(count)
    return {"input_ids": sources, "labels": targets, **counts}
