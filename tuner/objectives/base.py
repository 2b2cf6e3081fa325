"""What every pretraining objective is: examples of documents, batches of examples, and the loss of a batch."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from tuner.corpus.corrupt import IGNORED
from tuner.corpus.stream import TokenStream
from tuner.data.draws import FILLER, generator
from tuner.data.tokens import token_blocks
from tuner.errors import ArgumentError
from tuner.model import TunerPreTrainedModel
from tuner.ops.chunked_loss import chunked_cross_entropy

# Padded sequences have a length that this divides.
MULTIPLE = 32

Batch = dict[str, torch.Tensor]
Row = dict[str, Any]
Sums = dict[str, torch.Tensor]


class Objective:
    """What all share: blocks of tokens without a gap, padded batches, and the mean loss as the metric.

    Args:
        tokenizer: with the special tokens that the objective needs.
        max_length: tokens in a sequence.
        seed: of all that is random.
    """

    # Each block begins with the tokenizer's first token, each document ends with its last.
    starts: ClassVar[bool] = True
    # Whether its examples are blocks, which can be made of a stream; and the shortest `max_length` that holds one.
    streams: ClassVar[bool] = True
    least_length: ClassVar[int] = 2
    # What the loss counts.
    loss_unit: ClassVar[str] = "nats a token"
    # Whether `rows` of an example are the documents' own numbers.
    keeps_rows: ClassVar[bool] = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int, **options: Any):
        self.tokenizer, self.max_length, self.seed = tokenizer, max_length, seed
        self.options = options
        self.longest, self.fixed = max_length, False  # a sequence with its ends; whether all are padded to that
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[tokenizer.all_special_ids] = True

    def rows(self, documents: Dataset, num_proc: int | None = None, name: str = "the dataset") -> Dataset:
        """Examples of `documents`, rows of `text`."""
        return token_blocks(documents, self.tokenizer, self.max_length, *self.ends(), num_proc, name)

    def ends(self) -> tuple[int | None, int | None]:
        """The token that begins a block, and the one that ends a document."""
        if self.starts:
            return self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return None, self.tokenizer.eos_token_id

    def stream(self, documents: Any, clean: Callable[[str], str | None] | None = None) -> TokenStream:
        """Examples of documents that are read on the way.

        Raises:
            ArgumentError: an objective whose examples are no blocks.
        """
        if not self.streams:
            raise ArgumentError("--streaming true makes blocks of text: for clm, mlm, rtd and denoise.")
        start, end = self.ends()
        return TokenStream(documents, self.tokenizer, self.max_length, start, None, end, clean)

    def example(self, row: Row) -> dict[str, np.ndarray]:
        """The sequences of one draw."""
        raise NotImplementedError

    def __call__(self, rows: list[Row]) -> Batch:
        """Sequences of like name padded to one length, `labels` with -100; and what the trainer counts with."""
        return self.padded([self.example(row) for row in rows], rows)

    def padded(self, examples: list[dict[str, np.ndarray]], rows: list[Row]) -> Batch:
        """`(batch, time)` tensors, `attention_mask` where something is padded."""
        batch: Batch = {}
        for name in examples[0]:
            parts = [torch.as_tensor(np.asarray(example[name], dtype=np.int64)) for example in examples]
            fill = IGNORED if name == "labels" else 0 if name == "token_type_ids" else self.tokenizer.pad_token_id
            padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)
            room = max(self.longest - padded.shape[1], 0)  # positions may end there
            if self.fixed:
                padded = F.pad(padded, (0, room), value=fill)
            elif min(map(len, parts)) < padded.shape[1]:  # for every new length kernels are made anew: few lengths
                padded = F.pad(padded, (0, min(-padded.shape[1] % MULTIPLE, room)), value=fill)
            batch[name] = padded
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        if self.fixed or int(lengths.min()) < batch["input_ids"].shape[1]:
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        for number, row in enumerate(rows):
            if row["draw"] == FILLER and "labels" in batch:
                batch["labels"][number] = IGNORED
        return batch | {"tokens": lengths, "rows": torch.tensor([[row["row"]] for row in rows])}

    def draw(self, row: Row) -> np.random.Generator:
        """The random numbers of a draw."""
        return generator(self.seed, row["draw"])

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """The sum of a batch's losses, and over how many it is."""
        hidden, targets, outputs = self.hidden(model, labels, **inputs)
        total = self.token_loss(model, hidden, targets)
        return total + balance(model, outputs, inputs) * len(targets), len(targets)

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """What the head sees of the tokens that are asked for `(tokens, embedding_size)`, those tokens, and the
        model's output."""
        raise NotImplementedError

    def token_loss(self, model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of the tokens' cross-entropies, with `z_loss` while training."""
        head = model.get_output_embeddings()
        z_loss = self.options.get("z_loss", 0.0) if model.training else 0.0
        return chunked_cross_entropy(hidden, head.weight, targets, head.bias, z_loss)

    def token_sums(self, model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> Sums:
        """The sum of the tokens' cross-entropies, and how many were guessed."""
        logits = model.get_output_embeddings()(hidden).float()
        loss = F.cross_entropy(logits, targets, reduction="sum")
        return {"loss": loss, "accuracy": (logits.argmax(-1) == targets).sum(), "count": torch.tensor(len(targets))}

    def sums(self, model: Any, labels: torch.Tensor, **inputs: Any) -> Sums:
        """What evaluation adds up; `loss` and `count` at least. Of a model with experts without their balance."""
        hidden, targets, _ = self.hidden(model, labels, **inputs)
        return self.token_sums(model, hidden, targets)

    def summary(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the sums."""
        return {name: float(sums[name] / max(sums["count"], 1)) for name in sums if name != "count"}


def use_objective(model: PreTrainedModel, objective: Objective) -> None:
    """Give a model a `forward` that, called with labels, returns the objective's loss and nothing else."""
    own_forward = model.forward

    def forward(
        self: PreTrainedModel,
        *args: Any,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None:
            return own_forward(*args, **kwargs)
        total, count = objective.loss(self, labels, **kwargs)
        return ModelOutput(loss=total / (num_items_in_batch if num_items_in_batch is not None else max(count, 1)))

    model.forward = types.MethodType(forward, model)


def routed(model: Any, labels: torch.Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, with the router's logits asked for where our model balances experts."""
    return model.with_router(labels, inputs) if isinstance(model, TunerPreTrainedModel) else inputs


def balance(model: Any, outputs: Any, inputs: dict[str, Any]) -> torch.Tensor | float:
    """The load-balancing loss of a model of ours with experts, a mean; otherwise 0."""
    logits = outputs.get("router_logits") if isinstance(model, TunerPreTrainedModel) else None
    found = model.balance(logits, inputs.get("attention_mask")) if logits else None
    return 0.0 if found is None else found
