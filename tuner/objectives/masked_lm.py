"""Hidden tokens of raw text: masked language modelling, and with it whether a segment follows another."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from tuner.corpus.corrupt import mask_tokens, word_continuations
from tuner.corpus.segments import segment_pairs
from tuner.corpus.stream import TokenStream
from tuner.data.collate import IGNORED
from tuner.data.draws import FILLER, Draws
from tuner.data.tokens import token_blocks
from tuner.evaluation.baselines.ngrams import MaskedBigram, is_small
from tuner.objectives.arguments import MaskedLMArguments, TextArguments
from tuner.objectives.base import A, Batch, Objective, Row, Sums
from tuner.objectives.records import Comparison, Outcome


class BlockObjective(Objective[A]):
    """What objectives share that hide something of blocks of raw text and ask for it."""

    arguments = TextArguments
    streams, guesses, mixes, joins = True, True, True, True

    def block(self) -> tuple[int, int | None, int | None]:
        """Tokens in a block, the one that begins each, and the one that ends a document."""
        return self.args.max_length, self.tokenizer.cls_token_id, self.tokenizer.sep_token_id

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, None]:
        return token_blocks(rows, self.tokenizer, *self.block(), self.args.dataset_num_proc, name), None

    def stream(self, documents: Any, clean: Any = None) -> TokenStream:
        """Blocks of documents that are read while training."""
        length, start, end = self.block()
        return TokenStream(documents, self.tokenizer, length, start, None, end, clean)

    def example(self, row: Row) -> dict[str, np.ndarray]:
        """The sequences of one draw."""
        raise NotImplementedError

    def __call__(self, rows: list[Row]) -> Batch:
        return self.padded([self.example(row) for row in rows], rows)


def labelled(states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of the tokens that have a label, `(tokens, hidden_size)`, and those labels."""
    where = (labels.reshape(-1) != IGNORED).nonzero().squeeze(1)
    return states.flatten(0, 1).index_select(0, where), labels.reshape(-1).index_select(0, where)


class MaskedLM(BlockObjective[MaskedLMArguments]):
    """mlm: `-log p(token | the sequence with 15 % of its tokens hidden)` over the hidden ones, anew in every epoch
    (Devlin et al. 2018, https://arxiv.org/abs/1810.04805; dynamic masking: Liu et al. 2019,
    https://arxiv.org/abs/1907.11692)."""

    arguments = MaskedLMArguments
    name = "mlm"
    tokens = ("cls_token", "sep_token", "mask_token")
    vocabulary, needs_end = "mlm", False
    model = "masked"
    # Of the chosen tokens, the share that is not replaced by the mask token.
    keep: ClassVar[float] = 0.2

    def __init__(self, args: MaskedLMArguments, tokenizer: PreTrainedTokenizerBase, *more: Any):
        super().__init__(args, tokenizer, *more)
        self.continues = word_continuations(tokenizer) if args.whole_word else None
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[tokenizer.all_special_ids] = True

    def whole(self, row: Row) -> np.ndarray:
        """A row's tokens as the model sees them, none hidden."""
        return np.asarray(row["input_ids"])

    def hide(self, ids: np.ndarray, row: Row) -> dict[str, np.ndarray]:
        """`input_ids` and `labels` of a draw."""
        share = 0.15 if self.args.mlm_probability is None else self.args.mlm_probability
        hidden, labels = mask_tokens(
            ids, self.draw(row), self.special, self.tokenizer.mask_token_id, share, self.continues, self.keep
        )
        return {"input_ids": hidden, "labels": labels}

    def example(self, row: Row) -> dict[str, np.ndarray]:
        return self.hide(row["input_ids"], row)

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        outputs = model.model(**model.with_router(labels, inputs))
        states, targets = labelled(outputs.last_hidden_state, labels)
        return model.prediction(states), targets, outputs

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside the most frequent token, and a bigram that looks both ways."""
        found = outcome.before_and_after("accuracy")
        if not isinstance(outcome.examples.train, TokenStream) and is_small(outcome.rows.train):
            found = {**self._counted(outcome), **found}
        return {"accuracy": found, self.loss_unit: outcome.before_and_after("loss")}

    def _counted(self, outcome: Outcome) -> dict[str, float]:
        draws, pad = Draws(outcome.examples.train), self.tokenizer.pad_token_id
        plain = [self.whole(draws[number]) for number in range(len(draws))]
        bigram = MaskedBigram(plain, len(self.tokenizer))
        tokens = np.concatenate(plain)
        frequent = np.bincount(tokens[~self.special[tokens]]).argmax()
        right = np.zeros(3)
        for batch in self.held_out(outcome.examples, self.args.per_device_eval_batch_size):
            for ids, labels in zip(batch["input_ids"].numpy(), batch["labels"].numpy(), strict=True):
                ids, labels = ids[ids != pad], labels[ids != pad]
                hidden = labels != IGNORED
                found = bigram.predict(ids, hidden)
                right += [(labels[hidden] == frequent).sum(), (found == labels[hidden]).sum(), hidden.sum()]
        return {"most frequent": float(right[0] / right[2]), "bigram, both ways": float(right[1] / right[2])}


class NextSentence(MaskedLM):
    """mlm+nsp: also whether the second of two segments follows the first, `-log p(follows | both)`, a mean over pairs;
    half of them are another document's in the batch (Devlin et al. 2018, section 3.1)."""

    name = "mlm+nsp"
    model = "pretraining"
    streams = False
    terms: ClassVar[dict[str, float]] = {"loss": 1.0, "nsp_loss": 1.0}
    loss_unit = "nats a hidden token + nats a pair"
    least_length = 5  # two ends, one between, a token of each segment
    rivals = "batch"

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, None]:
        longest = (self.args.max_length - 3) // 2
        pairs = segment_pairs(rows, self.tokenizer, longest, True, self.args.dataset_num_proc, name)
        return pairs.shuffle(seed=0), None  # evaluation goes in order, and a batch must hold several documents

    def whole(self, row: Row, second: np.ndarray | None = None) -> np.ndarray:
        start, end = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        second = row["second"] if second is None else second
        return np.concatenate([start, row["first"], end, second, end]).astype(np.int64)

    def __call__(self, rows: list[Row]) -> Batch:
        documents = np.array([row["document"] for row in rows])
        examples, relation = [], []
        for row in rows:
            others = np.flatnonzero(documents != row["document"])
            random = np.random.default_rng([self.args.seed, row["draw"] % 2**63, 1])
            other = bool(len(others)) and random.random() < 0.5
            ids = self.whole(row, rows[random.choice(others)]["second"] if other else None)
            types = np.arange(len(ids)) >= len(row["first"]) + 2
            examples.append({**self.hide(ids, row), "token_type_ids": types})
            relation.append(IGNORED if row["draw"] == FILLER else int(other))
        return self.padded(examples, rows) | {"next_sentence_label": torch.tensor(relation)}

    def counts(self, batch: Batch) -> torch.Tensor:
        return torch.stack([(batch[name] != IGNORED).sum() for name in ("labels", "next_sentence_label")])

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        relation = inputs.pop("next_sentence_label")
        hidden, targets, outputs = self.hidden(model, labels, **inputs)
        guess = model.seq_relationship(outputs.pooler_output).float()
        return {
            **self.token_sums(model, hidden, targets, outputs, training, inputs),
            "nsp_loss": F.cross_entropy(guess, relation, reduction="sum"),
            "nsp_accuracy": (guess.argmax(-1) == relation).sum(),
            "pairs": (relation != IGNORED).sum(),
        }

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        pairs = max(sums.pop("pairs"), 1)
        of_pairs = {name: float(sums.pop(name) / pairs) for name in ("nsp_loss", "nsp_accuracy")}
        found = super().metrics(sums)
        return {**found, **of_pairs, "loss": found["loss"] + of_pairs["nsp_loss"]} if found else {}

    def compare(self, outcome: Outcome) -> Comparison:
        found = outcome.before_and_after("nsp_accuracy")
        return {**super().compare(outcome), "next sentence": {"chance": 0.5, **found}}
