"""denoise: hidden spans of raw text, for an encoder-decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tuner.corpus.corrupt import corrupt_spans, infill, sentinels
from tuner.errors import ModelError
from tuner.evaluation.baselines.spans import copy_spans, count_matches, spans_of, wanted_spans
from tuner.hardware import many_shapes
from tuner.objectives.arguments import DenoiseArguments
from tuner.objectives.base import Batch, Row
from tuner.objectives.masked_lm import BlockObjective, labelled
from tuner.objectives.records import Comparison, Outcome

# Rows that are generated for in the comparison.
GENERATED = 256


class Denoise(BlockObjective[DenoiseArguments]):
    """denoise: the hidden spans of a text, each after its sentinel (`--corruption spans`, Raffel et al. 2019,
    https://arxiv.org/abs/1910.10683), or the whole text out of one with spans gone (`infilling`, Lewis et al. 2019,
    https://arxiv.org/abs/1910.13461): `-log p(target | source)` a token."""

    arguments = DenoiseArguments
    name = "denoise"
    tokens = ("eos_token",)
    vocabulary = "denoise"
    model = "seq2seq"
    least_length = 3  # two tokens and the end

    def __init__(self, args: DenoiseArguments, tokenizer: PreTrainedTokenizerBase, *more: Any):
        super().__init__(args, tokenizer, *more)
        self.infills = args.corruption == "infilling"
        self.sentinels = sentinels(tokenizer)
        if self.infills and tokenizer.mask_token is None:
            raise ModelError("--corruption infilling needs a tokenizer with mask_token; this one has none.")
        if not self.infills and len(self.sentinels) < 2:
            raise ModelError("--corruption spans needs a tokenizer with the special tokens <extra_id_0>, <extra_id_1>.")
        # Of a stream several processes get batches in one, which must then be of one width.
        self.fixed = args.streaming and self.infills

    def block(self) -> tuple[int, int | None, int | None]:
        return self.args.max_length - 1, None, self.tokenizer.eos_token_id  # room for the end

    def example(self, row: Row) -> dict[str, np.ndarray]:
        ids, end, draw = row["input_ids"], [self.tokenizer.eos_token_id], self.draw(row)
        share, mean = self.args.mlm_probability, self.args.mean_noise_span_length
        if share is None:
            share = 0.3 if self.infills else 0.15
        if self.infills:
            source, target = infill(ids, draw, self.tokenizer.mask_token_id, share, mean), ids
        else:
            source, target = corrupt_spans(ids, draw, self.sentinels, share, mean)
        return {"input_ids": np.concatenate([source, end]), "labels": np.concatenate([target, end])}

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        return decoded(model, labels, inputs)

    def compare(self, outcome: Outcome) -> Comparison:
        """Spans written exactly without looking at the target: by both models, and by copying what stands before."""
        losses = {self.loss_unit: outcome.before_and_after("loss")}
        if self.infills:  # all is to be written, and there are no spans
            return losses
        batch = next(self.held_out(outcome.examples, GENERATED))
        sources, targets = batch["input_ids"].numpy(), batch["labels"].numpy()
        marks = set(self.sentinels.tolist())
        wanted = [wanted_spans(target, source, marks) for target, source in zip(targets, sources, strict=True)]
        written = {"copying": [copy_spans(ids, spans) for ids, spans in zip(sources, wanted, strict=True)]}
        untrained = outcome.untrained().to(outcome.model.device)
        for name, model in (("untrained", untrained), ("trained", outcome.model)):
            written[name] = [spans_of(ids, marks) for ids in _generate(model.eval(), batch)]
        count = sum(len(spans) for spans in wanted)
        match = {name: sum(map(count_matches, spans, wanted)) / max(count, 1) for name, spans in written.items()}
        return {"spans written exactly": match, **losses}


def decoded(model: Any, labels: torch.Tensor, inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """What the head of our encoder-decoder sees, as `Objective.hidden` gives it."""
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    outputs = model.model(**inputs, decoder_input_ids=decoder_input_ids, use_cache=False)
    states, targets = labelled(outputs.last_hidden_state, labels)
    return states * model.config.decoder.logit_scale, targets, outputs


@torch.no_grad()
@many_shapes()
def _generate(model: Any, batch: Batch) -> np.ndarray:
    """What a model writes for each row, as long as the longest target."""
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask") if name in batch}
    ids = model.generate(**inputs, max_new_tokens=batch["labels"].shape[1], do_sample=False, num_beams=1)
    return np.asarray(ids.cpu())
