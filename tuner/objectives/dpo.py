"""dpo: preferences, without a reward model. The reference is the model as the run begins, whose log-probabilities are
computed once and kept; under an adapter it is the same weights without the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from rich.text import Text
from torch.nn import functional as F
from transformers import PreTrainedModel

from tuner.data.draws import FILLER, Draws
from tuner.data.encoding_report import EncodingReport
from tuner.data.preferences import encode_preferences
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError
from tuner.objectives.arguments import PreferenceArguments
from tuner.objectives.base import Batch, Row, Sums, own_class
from tuner.objectives.causal_lm import NextToken
from tuner.objectives.records import Comparison, Outcome
from tuner.ops.chunked_loss import chunked_cross_entropy, supervised_positions

PARTS = ("chosen", "rejected")  # the two sequences of an example


class DPO(NextToken[PreferenceArguments]):
    """`--loss_type sigmoid`: `-log sigmoid(beta (r_chosen - r_rejected))` with `r = log p(completion | prompt) -
    log p_reference` (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290); `ipo`: `(r_chosen / n_chosen -
    r_rejected / n_rejected - 1 / (2 beta))²` (Azar et al. 2023, https://arxiv.org/abs/2310.12036, lengths as in TRL);
    `kto`: `1 - sigmoid(±beta (r - KL))` of completions that are wanted or not (Ethayarajh et al. 2024,
    https://arxiv.org/abs/2402.01306, equations 7 and 8)."""

    arguments = PreferenceArguments
    name = "dpo"
    kinds = ("preference", "unpaired")
    loss_unit = "loss an example"

    # ---- data ----

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport]:
        paired = "chosen" in rows.column_names
        if self.args.loss_type == "kto":
            return self._unpaired(rows, name)
        if not paired:
            raise DataError(f"{name}: --loss_type {self.args.loss_type} takes pairs; unpaired rows are for kto.")
        return self._encoded(rows, name)

    def _encoded(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport]:
        args = self.args
        how = (args.max_length, args.max_labels_lost, args.dataset_num_proc, name)
        return encode_preferences(rows, "preference", self.tokenizer, *how)

    def _unpaired(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport]:
        """Wanted and unwanted completions. The second sequence of each is the completion of another prompt, from which
        KTO estimates how far the model is from the reference."""
        parts, reports = [], []
        for wanted, column in ((True, "chosen"), (False, "rejected")):
            part = rows
            if column not in rows.column_names:
                part, column = rows.select(np.flatnonzero(np.array(rows["label"]) == wanted)), "completion"
            if len(part):
                said = list(part[column])
                columns = {"prompt": part["prompt"], "chosen": said, "rejected": [said[-1], *said[:-1]]}
                pairs = Dataset.from_dict({**columns, SOURCE_ROW: part[SOURCE_ROW]})
                encoded, report = self._encoded(pairs, name)
                parts.append(encoded.add_column("desirable", [wanted] * len(encoded)))
                reports.append(report)
        sums = {f.name: sum(getattr(report, f.name) for report in reports) for f in fields(EncodingReport)}
        return concatenate_datasets(parts), EncodingReport(**sums)

    def reference(self, model: PreTrainedModel, rows: Dataset, batch_size: int) -> list[list[float]]:
        """The reference's log-probabilities of each example's two sequences."""
        draws, found = Draws(rows), []
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        adapter = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
        was_training = model.training
        model.eval()
        with torch.no_grad(), adapter:
            for start in range(0, len(draws), batch_size):
                batch = self([draws[n] for n in range(start, min(start + batch_size, len(draws)))])
                inputs = {k: v.to(bare.device) for k, v in batch.items() if k not in ("tokens", "rows", "desirable")}
                found.append(self.log_probabilities(bare, **inputs).view(2, -1).T.cpu())
        model.train(was_training)
        return torch.cat(found).double().tolist() if found else []

    def __call__(self, rows: list[Row]) -> Batch:
        sequences = [
            {"input_ids": row[f"{part}_input_ids"], "labels": row[f"{part}_labels"], "rows": row["rows"], "draw": 0}
            for part in PARTS
            for row in rows
        ]
        lengths = [len(sequence["input_ids"]) for sequence in sequences]
        batch = super().__call__(sequences)
        # Of every token the number of its sequence; padding has the last one's, and no label.
        if self.layout.padding_free:
            segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            batch["segments"] = F.pad(segments, (0, batch["labels"].shape[1] - len(segments)))[None]
        else:
            batch["segments"] = torch.arange(len(lengths))[:, None].expand_as(batch["labels"]).contiguous()
        if "reference" in rows[0]:
            found = np.stack([row["reference"] for row in rows]).T.reshape(-1)
            batch["reference"] = torch.tensor(found, dtype=torch.float32)
        if self.args.loss_type == "kto":
            batch["desirable"] = torch.tensor([bool(row["desirable"]) for row in rows])
        return batch | {"real": torch.tensor([row["draw"] != FILLER for row in rows])}

    def counts(self, batch: Batch) -> torch.Tensor:
        return batch["real"].sum()

    # ---- the loss ----

    def log_probabilities(
        self, model: Any, labels: torch.Tensor, segments: torch.Tensor, real: torch.Tensor, **inputs: Any
    ) -> torch.Tensor:
        """`log p(completion | prompt)` of each sequence, `(2 x examples,)`, float32."""
        inputs.pop("reference", None)
        if self.layout.chunked_loss:
            outputs = model.base_model(**inputs, use_cache=False)
            hidden, targets = supervised_positions(outputs.last_hidden_state, labels)
            head = model.get_output_embeddings()
            losses = chunked_cross_entropy(hidden, head.weight, targets, head.bias, reduction="none")
        else:
            logits = own_class(model).forward(model, **inputs, use_cache=False).logits
            hidden, targets = supervised_positions(logits, labels)
            losses = F.cross_entropy(hidden.float(), targets, reduction="none")
        owner, _ = supervised_positions(segments[..., None], labels)
        # A product and not `index_add_`, whose order on accelerators is not always the same.
        owners = torch.arange(2 * len(real), device=labels.device)[:, None] == owner[:, 0]
        return -(owners.to(losses.dtype) @ losses)

    def _scores(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each example, and the rewards `beta r` of all sequences."""
        beta, segments, real = self.args.beta, inputs["segments"], inputs["real"]
        desirable = inputs.pop("desirable", None)
        ratios = self.log_probabilities(model, labels, **inputs) - inputs["reference"]
        one, other = ratios.chunk(2)
        rewards = beta * ratios.detach()
        if desirable is not None:
            distance = other[real].detach().sum() / real.sum().clamp(min=1)
            sign = torch.where(desirable, 1.0, -1.0)
            weight = torch.where(desirable, self.args.desirable_weight, self.args.undesirable_weight)
            return weight * (1 - torch.sigmoid(sign * beta * (one - distance.clamp(min=0)))), rewards
        if self.args.loss_type == "ipo":
            owners = torch.arange(len(ratios), device=labels.device)[:, None, None] == segments
            one, other = (ratios / (owners & (labels != -100)).sum(dim=(1, 2)).clamp(min=1)).chunk(2)
            return (one - other - 1 / (2 * beta)) ** 2, rewards
        margin, smoothing = beta * (one - other), self.args.label_smoothing
        return -F.logsigmoid(margin) * (1 - smoothing) - F.logsigmoid(-margin) * smoothing, rewards

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses, _ = self._scores(model, labels, **inputs)
        return (losses * inputs["real"]).sum(), inputs["real"].sum()

    def sums(self, model: Any, labels: torch.Tensor, **inputs: Any) -> Sums:
        real, desirable = inputs["real"], inputs.get("desirable")
        losses, rewards = self._scores(model, labels, **inputs)
        one, other = (rewards * real.repeat(2)).chunk(2)
        found = {"loss": (losses * real).sum(), "count": real.sum()}
        if desirable is not None:
            return {**found, "rewards": one.sum(), "accuracy": (((one > 0) == desirable) & real).sum()}
        return {**found, "accuracy": ((one > other) & real).sum(), "margin": (one - other).sum()}

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside chance, the reference's own likelihoods, and "the longer one is better"."""
        right = {"chance": 0.5}
        if self.args.loss_type != "kto":
            pairs = outcome.examples.eval.with_format("numpy")
            reference = np.array(outcome.examples.eval["reference"])
            longer = [len(row["chosen_labels"]) > len(row["rejected_labels"]) for row in pairs]
            right |= {"likelier": float((reference[:, 0] > reference[:, 1]).mean())}
            right |= {"longer": float(np.mean(longer))}
        found = {"examples judged right": {**right, **outcome.before_and_after("accuracy")}}
        return {**found, self.loss_unit: outcome.before_and_after("loss")}

    def show(self, draws: list[Row]) -> Iterator[Text]:
        for draw in draws:
            for part in PARTS:
                yield from super().show([{name: draw[f"{part}_{name}"] for name in ("input_ids", "labels")}])
