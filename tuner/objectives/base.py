"""What a method of training is: examples of rows, batches of examples, the loss of a batch, and how it is measured.

The trainer knows nothing else of a method. `use_objective` puts the loss into a model's class before any wrapper sees
it, so that DDP, FSDP, autocast and compilation work as with a model's own loss.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from datasets import Dataset
from rich.table import Table
from rich.text import Text
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import ModelOutput

from tuner.config.arguments import RecipeArguments
from tuner.data.collate import IGNORED, pad
from tuner.data.draws import FILLER, Draws, generator
from tuner.data.encoding_report import EncodingReport
from tuner.data.labels import Labels
from tuner.data.schema import Kind
from tuner.errors import ArgumentError
from tuner.model import TunerPreTrainedModel
from tuner.objectives.records import Comparison, Examples, Layout, Outcome, Predictions, Rows
from tuner.ops.chunked_loss import chunked_cross_entropy

# Padded sequences have a length that this divides.
MULTIPLE = 32
# Tokens of an example that the dry run shows.
SHOWN_TOKENS = 160

A = TypeVar("A", bound=RecipeArguments)
Batch = dict[str, torch.Tensor]
Row = dict[str, Any]
Sums = dict[str, torch.Tensor]


class Objective(Generic[A]):
    """A method of training. What is here is what most share: padded batches, one term in the loss, its mean as metric.

    Args:
        args: the recipe's arguments, of the class `arguments` or one that inherits it.
        tokenizer: with the special tokens that `tokens` names.
        layout: of a causal model's batches; the others have none.
        labels: what rows with labels tell apart.
    """

    arguments: ClassVar[type[RecipeArguments]] = RecipeArguments
    training: ClassVar[type[TrainingArguments]] = TrainingArguments  # what its trainer takes of transformers
    name: ClassVar[str] = ""
    # Kinds of rows that it takes, and the special tokens that a tokenizer must have.
    kinds: ClassVar[tuple[Kind, ...]] = ("text",)
    tokens: ClassVar[tuple[str, ...]] = ()
    # Whether it must have an end token; whose special tokens a tokenizer gets that is trained for it.
    needs_end: ClassVar[bool] = True
    vocabulary: ClassVar[str] = "clm"
    # The class of model, as `tuner.loading.models` knows it.
    model: ClassVar[str] = "decoder"
    # The shortest `max_length` that holds an example, and the flags that it has no use for.
    least_length: ClassVar[int] = 2
    refused: ClassVar[tuple[str, ...]] = ()
    # Where an example finds wrong partners: nowhere, in its own "batch", or in those of all "processes".
    rivals: ClassVar[str] = ""
    # Whether `rows` of an example are the rows' own numbers; whether examples can be made of a stream.
    keeps_rows: ClassVar[bool] = False
    # Whether several data sets may have shares in an epoch, and losses of their own.
    mixes: ClassVar[bool] = False
    # Whether they are kept apart only where they have shares, for a small one may have no example of its own.
    joins: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    # Whether evaluation tells how many tokens were guessed, for which it holds the logits of all that are asked for.
    guesses: ClassVar[bool] = False
    # Of `sums` those that are the loss, with their weights.
    terms: ClassVar[dict[str, float]] = {"loss": 1.0}
    loss_unit: str = "nats a token"

    def __init__(
        self, args: A, tokenizer: PreTrainedTokenizerBase, layout: Layout | None = None, labels: Labels | None = None
    ):
        self.args, self.tokenizer, self.layout = args, tokenizer, layout or Layout()
        self.labels = labels or Labels()
        self.longest, self.fixed = args.max_length, False  # a sequence with its ends; whether all are padded to that
        self.label_smoothing = float(args.extra.get("label_smoothing_factor") or 0.0)
        self.z_loss = float(args.values().get("z_loss") or 0.0)

    @classmethod
    def check(cls, args: Any, processes: int) -> None:
        """An ArgumentError for flags that the method has no use for, before anything is loaded."""
        if args.max_length < cls.least_length:
            raise ArgumentError(f"--objective {cls.name} needs --max_length {cls.least_length} or more.")
        if getattr(args, "streaming", False) and not cls.streams:
            raise ArgumentError("--streaming true makes blocks of text: for clm, mlm, rtd and denoise.")
        for flag in cls.refused:
            if args.values().get(flag):
                raise ArgumentError(f"--{flag} has no meaning for {cls.name}.")
        for flag in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            if cls.rivals and getattr(args, flag) * (processes if cls.rivals == "processes" else 1) < 2:
                raise ArgumentError(f"--objective {cls.name} takes others of the batch as wrong: --{flag} 2 or more.")

    def check_model(self, model: PreTrainedModel) -> None:
        """A ModelError for a model that lacks what the method, or a flag, asks of it."""

    # ---- data ----

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport | None]:
        """Examples of canonical rows; a DataError where a row cannot be used, or none can."""
        raise NotImplementedError

    def __call__(self, rows: list[Row]) -> Batch:
        """Draws (`tuner.data.draws`) as a batch: `labels`, the model's inputs, and `tokens` and `rows` to count with.
        What is random in it is a function of the draw."""
        raise NotImplementedError

    def padded(self, examples: list[dict[str, np.ndarray]], rows: list[Row]) -> Batch:
        """`(batch, time)` tensors of sequences, `attention_mask` where something is padded."""
        multiple = self.longest if self.fixed else MULTIPLE
        fills = {"labels": IGNORED, "token_type_ids": 0}
        batch: Batch = {
            name: pad([e[name] for e in examples], fills.get(name, self.tokenizer.pad_token_id), multiple, self.longest)
            for name in examples[0]
        }
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        if self.fixed or int(lengths.min()) < batch["input_ids"].shape[1]:
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        for number, row in enumerate(rows):
            if row["draw"] == FILLER and "labels" in batch:
                batch["labels"][number] = IGNORED
        return batch | {"tokens": lengths, "rows": torch.tensor([[row["row"]] for row in rows])}

    def held_out(self, examples: Examples, size: int) -> Iterator[Batch]:
        """The validation examples in batches of `size`."""
        draws = Draws(examples.eval)
        for start in range(0, len(draws), size):
            yield self([draws[number] for number in range(start, min(start + size, len(draws)))])

    def draw(self, row: Row) -> np.random.Generator:
        """The random numbers of a draw."""
        return generator(self.args.seed, row["draw"])

    def reference(self, model: PreTrainedModel, rows: Dataset, batch_size: int) -> list[Any] | None:
        """What the model as the run begins says of each example, kept in the column `reference`; None for nothing."""
        return None

    # ---- loss and evaluation ----

    def counts(self, batch: Batch) -> torch.Tensor:
        """Over how many the loss of a batch is, by term: `()` for one term, else `(terms,)`. Needs no model: the
        trainer adds up the whole global batch before the first forward pass."""
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of a batch's losses `(terms,)`, and its `counts`."""
        sums = self.sums(model, labels, training=True, **inputs)
        totals = torch.stack([weight * sums[name] for name, weight in self.terms.items()])
        return totals, self.counts({"labels": labels, **inputs})

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        """What is added up over batches: each of `terms`; in training with what only that has (z-loss, label smoothing,
        the balance of experts), in evaluation with `count` and what else `metrics` takes."""
        return self.token_sums(model, *self.hidden(model, labels, **inputs), training, inputs)

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """What the head sees of the tokens that are asked for `(tokens, embedding_size)`, those tokens, and the
        model's output."""
        raise NotImplementedError

    def token_sums(
        self, model: Any, hidden: torch.Tensor, targets: torch.Tensor, outputs: Any, training: bool, inputs: Any
    ) -> Sums:
        """The sum of the tokens' cross-entropies. The balance of experts, a mean, counts for every token."""
        head, count = model.get_output_embeddings(), targets.new_full((), len(targets))
        if self.guesses and not training:
            logits = head(hidden).float()
            loss, guessed = F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(-1) == targets).sum()
            return {"loss": loss, "count": count, "accuracy": guessed}
        extra = (self.z_loss, self.label_smoothing) if training else ()
        loss = chunked_cross_entropy(hidden, head.weight, targets, head.bias, *extra)
        if training and isinstance(model, TunerPreTrainedModel):
            balance = model.balance(outputs.get("router_logits"), inputs.get("attention_mask"))
            if balance is not None:
                loss = loss + model.config.router_aux_loss_coef * balance * len(targets)
        return {"loss": loss, "count": count}

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the sums; none where nothing was counted."""
        if not sums.get("count"):
            return {}
        return {name: float(sums[name] / sums["count"]) for name in sums if name != "count"}

    def compare(self, outcome: Outcome) -> Comparison:
        """The trained model beside the untrained one and beside baselines."""
        return {self.loss_unit: outcome.before_and_after("loss")}

    def beside(self, outcome: Outcome, known: dict[str, float], trained: dict[str, float], main: str) -> Comparison:
        """The comparison by the metric `main`, with what was `known` of cheap baselines, the last the best; a model
        that loses to that one says so."""
        cheap, best = list(known.items())[-1]
        worse = trained["trained"] > best if main == "rmse" else trained["trained"] < best
        if worse:
            print(f"The model loses to {cheap}: {main} {trained['trained']:.4f}, and {best:.4f} by words alone.")
        return {main: known | trained, self.loss_unit: outcome.before_and_after("loss")}

    def predict(self, outcome: Outcome) -> Predictions | None:
        """What the trained model says of each validation row, for methods whose rows have labels."""
        return None

    def finish(self, model: Any, examples: Examples) -> str | None:
        """What is done to a trained model before it is saved, on every process; a sentence about it."""
        return None

    def saved_part(self, model: Any) -> Any:
        """The part of a trained model that outlives the training."""
        return model

    # ---- the dry run ----

    def describe(self, rows: Rows, examples: Examples) -> Table | None:
        """What became of the rows."""
        if examples.reports is None:
            return None
        table = Table("", title="Data", title_justify="left")
        for split in ("train", "eval"):
            table.add_column(split, justify="right")
        train, held_out = (report.to_dict() for report in examples.reports)
        for name in train:
            form = "{:.1%}" if name.startswith("share") else "{:,}"
            values = [form.format(split[name]) for split in (train, held_out)]
            if set(values) != {"0"}:
                table.add_row(name.replace("_", " "), *values)
        return examples.add_shares(table)

    def show(self, draws: list[Row]) -> Iterator[Text]:
        """Examples as a person reads them: what the model is given, and in green what it is asked for."""
        batch = self(draws)
        for number, ids in enumerate(batch["input_ids"]):
            text = Text(f"\nExample {number}, its first {SHOWN_TOKENS} tokens:\n", style="bold")
            shown = [i for i in ids[:SHOWN_TOKENS].tolist() if i != self.tokenizer.pad_token_id]
            text.append(self.tokenizer.decode(shown), style="not bold dim")
            if batch["labels"].dim() == 2:
                wanted = [i for i in batch["labels"][number, :SHOWN_TOKENS].tolist() if i != IGNORED]
                text.append("\nis to give\n", style="bold")
                text.append(self.tokenizer.decode(wanted), style="not bold green")
            yield text.append("\n")


def use_objective(model: PreTrainedModel, objective: Objective[Any]) -> None:
    """Give a model a `forward` that, called with labels, returns the objective's loss in training and its sums in
    evaluation, and no logits. Without labels its own runs.

    The class is replaced, not the method of the instance: a deep copy, or a replica on another device, then computes
    its own loss and not the original's.
    """
    kind = type(model)

    @functools.wraps(kind.forward)  # generation looks for the names of its inputs
    def forward(
        self: PreTrainedModel, *args: Any, labels: Any = None, num_items_in_batch: Any = None, **inputs: Any
    ) -> Any:
        if labels is None:
            return kind.forward(self, *args, **inputs)
        if not self.training:
            return ModelOutput(**objective.sums(self, labels=labels, **inputs))
        totals, counts = objective.loss(self, labels=labels, **inputs)
        of_all = counts if num_items_in_batch is None else num_items_in_batch
        return ModelOutput(loss=(totals / torch.as_tensor(of_all, device=totals.device).clamp(min=1)).sum())

    body = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__, "own_class": kind}
    model.__class__ = type(kind.__name__, (kind,), body)


def own_class(model: PreTrainedModel) -> Any:
    """A model's class without an objective in it."""
    return getattr(type(model), "own_class", type(model))
