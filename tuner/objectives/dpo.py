"""dpo: preferences, without a reward model. The reference is the model as the run begins, whose log-probabilities are
computed once and kept; under an adapter it is the same weights without the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from rich.text import Text
from torch.nn import functional as F
from transformers import PreTrainedModel

from tuner.data.collate import IGNORED
from tuner.data.draws import FILLER
from tuner.data.encode import encode_dataset
from tuner.data.encoding_report import EncodingReport
from tuner.data.schema import CANONICAL
from tuner.errors import DataError
from tuner.objectives.arguments import PreferenceArguments
from tuner.objectives.base import Batch, Row, Sums, own_class
from tuner.objectives.causal_lm import NextToken
from tuner.objectives.records import Comparison, Examples, Outcome
from tuner.ops.chunked_loss import chunked_cross_entropy, supervised_positions

PARTS = ("chosen", "rejected")  # the two sequences of an example
NO_INPUTS = ("tokens", "rows", "real", "desirable")  # of a model


class DPO(NextToken[PreferenceArguments]):
    """`--loss_type sigmoid`: `-log sigmoid(beta (r_chosen - r_rejected))` with `r = log p(completion | prompt) -
    log p_reference` (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290); `ipo`: `(r_chosen / n_chosen -
    r_rejected / n_rejected - 1 / (2 beta))²` (Azar et al. 2023, https://arxiv.org/abs/2310.12036, lengths as in TRL);
    `kto`: `1 - sigmoid(±beta (r - KL))` of completions that are wanted or not (Ethayarajh et al. 2024,
    https://arxiv.org/abs/2402.01306, equations 7 and 8)."""

    arguments = PreferenceArguments
    name = "dpo"
    kinds = ("preference", "unpaired")
    refused = ("label_smoothing_factor",)
    loss_unit = "loss an example"

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport]:
        args = self.args
        if args.loss_type == "kto":
            rows = _unpaired(rows)
        elif "chosen" not in rows.column_names:
            raise DataError(f"{name}: --loss_type {args.loss_type} takes pairs; unpaired rows are for kto.")
        cut = (args.max_length, args.truncation_mode, args.max_labels_lost, args.dataset_num_proc)
        return encode_dataset(rows, "preference", self.tokenizer, *cut, name)

    def reference(self, model: PreTrainedModel, rows: Dataset, batch_size: int) -> list[list[float]]:
        """The reference's log-probabilities of each example's two sequences."""
        found: list[list[float]] = []
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        model.eval()
        # An adapter that has learnt nothing is on: some begin with a part of the weights, which lack it without them.
        with torch.no_grad():
            for batch in self.held_out(Examples(None, rows), batch_size):
                inputs = {k: v.to(bare.device) for k, v in batch.items() if k not in NO_INPUTS}
                found += self._ratios(bare, **inputs)[0].T.tolist()
        return found

    def __call__(self, rows: list[Row]) -> Batch:
        batch = super().__call__(_sequences(rows))
        # Until the reference is known it is 0, and a ratio is the log-probability itself.
        reference = np.array([row.get("reference", (0.0, 0.0)) for row in rows])
        batch["reference"] = torch.tensor(reference.T, dtype=torch.float32)
        batch["real"] = torch.tensor([row["draw"] != FILLER for row in rows])
        if self.args.loss_type == "kto":
            batch["desirable"] = torch.tensor([bool(row["label"]) for row in rows])
        return batch

    def counts(self, batch: Batch) -> torch.Tensor:
        return batch["real"].sum()

    def _ratios(
        self, model: Any, labels: torch.Tensor, reference: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`log p(completion | prompt) - log p_reference`, float32, and the completions' tokens: both of the chosen and
        the rejected, `(2, examples)`."""
        if self.layout.chunked_loss:
            hidden, targets, _ = self.hidden(model, labels, **inputs)
            head = model.get_output_embeddings()
            losses = chunked_cross_entropy(hidden, head.weight, targets, head.bias, reduction="none")
        else:
            logits = own_class(model).forward(model, **inputs, use_cache=False).logits
            hidden, targets = supervised_positions(logits, labels)
            losses = F.cross_entropy(hidden.float(), targets, reduction="none")
        numbers = torch.arange(reference.numel(), device=labels.device)[:, None]
        # Joined in one row, sequences are told apart by their positions, which start again.
        joined = "position_ids" in inputs
        sequence = (inputs["position_ids"] == 0).cumsum(dim=1) - 1 if joined else numbers.expand_as(labels)
        owners = numbers == sequence[:, 1:][labels[:, 1:] != IGNORED]
        # A product and not `index_add_`, whose order on accelerators is not always the same.
        ratios = -(owners.to(losses.dtype) @ losses).view_as(reference) - reference
        return ratios, owners.sum(dim=1).view_as(reference)

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        args, beta, real, wanted = self.args, self.args.beta, inputs.pop("real"), inputs.pop("desirable", None)
        ratios, lengths = self._ratios(model, labels, **inputs)
        one, other = ratios
        reward, other_reward = beta * ratios.detach()
        found = {"accuracy": reward > other_reward, "margin": reward - other_reward}
        if wanted is not None:
            distance = (other[real].detach().sum() / real.sum().clamp(min=1)).clamp(min=0)
            losses = 1 - torch.sigmoid(torch.where(wanted, 1.0, -1.0) * beta * (one - distance))
            losses = torch.where(wanted, args.desirable_weight, args.undesirable_weight) * losses
            found = {"accuracy": (reward > 0) == wanted, "rewards": reward}
        elif args.loss_type == "ipo":
            one, other = ratios / lengths.clamp(min=1)
            losses = (one - other - 1 / (2 * beta)) ** 2
        else:
            margin, smoothing = beta * (one - other), args.label_smoothing
            losses = -F.logsigmoid(margin) * (1 - smoothing) - F.logsigmoid(-margin) * smoothing
        return {"count": real.sum(), **{name: (each * real).sum() for name, each in {"loss": losses, **found}.items()}}

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside chance, the reference's own likelihoods, and "the longer one is better"."""
        right = {"chance": 0.5}
        if self.args.loss_type != "kto":
            pairs = outcome.examples.eval
            reference = np.array(pairs["reference"])
            chosen, rejected = ([len(ids) for ids in pairs[f"{part}_input_ids"]] for part in PARTS)
            right["likelier"] = float((reference[:, 0] > reference[:, 1]).mean())
            right["longer"] = float(np.greater(chosen, rejected).mean())
        right |= outcome.before_and_after("accuracy")
        return {"examples judged right": right, self.loss_unit: outcome.before_and_after("loss")}

    def show(self, draws: list[Row]) -> Iterator[Text]:
        return super().show([sequence for draw in draws for sequence in _sequences([draw])])


def _sequences(rows: list[Row]) -> list[Row]:
    """The chosen ones, then the rejected."""
    names = ("input_ids", "labels")
    return [{**row, **{name: row[f"{part}_{name}"] for name in names}} for part in PARTS for row in rows]


def _unpaired(rows: Dataset) -> Dataset:
    """Single completions. The second sequence of each is the completion before, which answers another prompt: from
    these KTO estimates how far the model is from the reference."""
    found = list(rows)
    if "chosen" in rows.column_names:
        found = [{**row, "completion": row[part], "label": part == "chosen"} for part in PARTS for row in found]
    said = [row["completion"] for row in found]
    pairs = zip(found, said, said[-1:] + said[:-1], strict=True)
    columns = Features({**CANONICAL["preference"], "label": Value("bool")})
    whole = [{**row, "chosen": one, "rejected": other} for row, one, other in pairs]
    return Dataset.from_list([{column: row[column] for column in columns} for row in whole], columns)
