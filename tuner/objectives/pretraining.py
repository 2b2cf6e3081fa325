"""What a model learns from raw text: six objectives, each a transformation of the data and a loss.

An objective makes rows of documents (`rows`), batches of rows (a call: what is random in it is a function of the
draw), and the loss of a batch (`loss`: a sum, and over how many). `use_objective` puts that loss into a model's
`forward`, before any wrapper sees it. In evaluation `sums` are added up over batches and `summary` makes metrics of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from tuner.corpus.corrupt import IGNORED, corrupt_spans, infill, mask_tokens, sentinels, word_continuations
from tuner.corpus.segments import segment_pairs
from tuner.corpus.stream import TokenStream
from tuner.data.collate import CausalCollator
from tuner.data.draws import FILLER, generator
from tuner.data.pack import pack_dataset
from tuner.data.tokens import whole_documents
from tuner.objectives.base import Batch, Objective, Row, Sums, balance, routed
from tuner.objectives.electra import area_under_curve, count_scores, fill_in, judge
from tuner.objectives.embed import embed, gathered
from tuner.ops.chunked_loss import can_be_chunked, supervised_positions


class CausalLM(Objective):
    """clm: `-log p(token | those before it)`, a mean over tokens, of whole documents packed into blocks, none seeing
    another (Bengio et al. 2003). Any causal model of transformers that is a backbone and a linear head."""

    keeps_rows = True

    def rows(self, documents: Dataset, num_proc: int | None = None, name: str = "the dataset") -> Dataset:
        chosen = {key: self.options[key] for key in ("truncation_mode", "max_labels_lost") if key in self.options}
        encoded, _ = whole_documents(documents, self.tokenizer, self.max_length, **chosen, num_proc=num_proc, name=name)
        return pack_dataset(encoded, self.max_length) if self.options.get("packing", True) else encoded

    def __call__(self, rows: list[Row]) -> Batch:
        rows = [row if "labels" in row else self.of_stream(row) for row in rows]
        blank = [
            {**row, "labels": np.full_like(row["labels"], IGNORED)} if row["draw"] == FILLER else row for row in rows
        ]
        return CausalCollator(self.tokenizer.pad_token_id, padding_free=self.options.get("padding_free", False))(blank)

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        if not can_be_chunked(model):
            own = type(model).forward(model, labels=labels, use_cache=False, **inputs)
            count = (labels[:, 1:] != IGNORED).sum()
            return own.loss * count, count
        return super().loss(model, labels, **inputs)

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        outputs = model.base_model(**routed(model, labels, inputs), use_cache=False)
        return *supervised_positions(outputs.last_hidden_state, labels), outputs

    def sums(self, model: Any, labels: torch.Tensor, **inputs: Any) -> Sums:
        if not can_be_chunked(model):
            total, count = self.loss(model, labels, **inputs)
            return {"loss": total, "count": count}
        hidden, targets, _ = self.hidden(model, labels, **inputs)
        # Without the logits of all tokens at once, so there is no accuracy.
        return {"loss": self.token_loss(model, hidden, targets), "count": torch.tensor(len(targets))}

    def stream(self, documents: Any, clean: Callable[[str], str | None] | None = None) -> TokenStream:
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        # One mark for both, as GPT-2's, stands between documents once.
        before = first if first != last else None
        return TokenStream(documents, self.tokenizer, self.max_length, None, before, last, clean)

    def of_stream(self, row: Row) -> Row:
        """A block of a stream with `labels` and with `position_ids` that start again after each document's end."""
        ids = row["input_ids"]
        starts = np.concatenate([[True], ids[:-1] == self.tokenizer.eos_token_id])
        first = np.maximum.accumulate(np.where(starts, np.arange(len(ids)), 0))
        return {
            **row,
            "labels": np.where(starts, IGNORED, ids),
            "position_ids": np.arange(len(ids)) - first,
            "rows": [row["row"]],
        }


class MaskedLM(Objective):
    """mlm: `-log p(token | the sequence with 15 % of its tokens hidden)` over the hidden ones, anew in every epoch
    (Devlin et al. 2018, https://arxiv.org/abs/1810.04805; dynamic masking: Liu et al. 2019,
    https://arxiv.org/abs/1907.11692). Options: `mlm_probability`, `whole_word`."""

    keep: ClassVar[float] = 0.2

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int, **options: Any):
        super().__init__(tokenizer, max_length, seed, **options)
        self.continues = word_continuations(tokenizer) if options.get("whole_word") else None

    def hide(self, ids: np.ndarray, row: Row) -> dict[str, np.ndarray]:
        """`input_ids` and `labels` of a draw."""
        share = self.options.get("mlm_probability", 0.15)
        hidden, labels = mask_tokens(
            ids, self.draw(row), self.special, self.tokenizer.mask_token_id, share, self.continues, self.keep
        )
        return {"input_ids": hidden, "labels": labels}

    def example(self, row: Row) -> dict[str, np.ndarray]:
        return self.hide(row["input_ids"], row)

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        outputs = model.model(**routed(model, labels, inputs))
        where = (labels.reshape(-1) != IGNORED).nonzero().squeeze(1)
        states = outputs.last_hidden_state.flatten(0, 1).index_select(0, where)
        return model.prediction(states), labels.reshape(-1).index_select(0, where), outputs


class NextSentence(MaskedLM):
    """mlm+nsp: also whether the second of two segments follows the first, `-log p(follows | both)`; half of them are
    another document's in the batch (Devlin et al. 2018, section 3.1)."""

    streams = False
    loss_unit = "nats a hidden token and pair"
    least_length = 5  # two ends, one between, a token of each segment

    def rows(self, documents: Dataset, num_proc: int | None = None, name: str = "the dataset") -> Dataset:
        pairs = segment_pairs(documents, self.tokenizer, (self.max_length - 3) // 2, whole=True, num_proc=num_proc)
        return pairs.shuffle(seed=0)  # evaluation goes in order, and a batch must hold several documents

    def __call__(self, rows: list[Row]) -> Batch:
        documents = np.array([row["document"] for row in rows])
        examples, relation = [], []
        for row in rows:
            others = np.flatnonzero(documents != row["document"])
            random = np.random.default_rng([self.seed, row["draw"] % 2**63, 1])
            other = bool(len(others)) and random.random() < 0.5
            second = rows[random.choice(others)]["second"] if other else row["second"]
            first = row["first"]
            start, end = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
            ids = np.concatenate([start, first, end, second, end]).astype(np.int64)
            types = np.arange(len(ids)) >= len(first) + 2
            examples.append({**self.hide(ids, row), "token_type_ids": types})
            relation.append(IGNORED if row["draw"] == FILLER else int(other))
        return self.padded(examples, rows) | {"next_sentence_label": torch.tensor(relation)}

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        relation = inputs.pop("next_sentence_label")
        hidden, targets, outputs = self.hidden(model, labels, **inputs)
        guess = model.seq_relationship(outputs.pooler_output).float()
        total = self.token_loss(model, hidden, targets) + balance(model, outputs, inputs) * len(targets)
        return total + F.cross_entropy(guess, relation) * len(targets), len(targets)

    def sums(self, model: Any, labels: torch.Tensor, **inputs: Any) -> Sums:
        relation = inputs.pop("next_sentence_label")
        hidden, targets, outputs = self.hidden(model, labels, **inputs)
        guess = model.seq_relationship(outputs.pooler_output).float()
        found = self.token_sums(model, hidden, targets)
        pairs = (relation != IGNORED).sum()
        of_pairs = F.cross_entropy(guess, relation, reduction="sum") / pairs.clamp(min=1) * len(targets)
        right = (guess.argmax(-1) == relation).sum()
        return found | {"loss": found["loss"] + of_pairs, "right": right, "pairs": pairs}

    def summary(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        right, pairs = sums.pop("right"), sums.pop("pairs")
        return super().summary(sums) | {"nsp_accuracy": float(right / max(pairs, 1))}


class ReplacedTokens(MaskedLM):
    """rtd: a small generator learns masked tokens and fills them in; the model says of every token whether it is the
    original (Clark et al. 2020, https://arxiv.org/abs/2003.10555): `L = L_mlm + 50 · mean BCE(replaced)`."""

    keep = 0.0  # what is chosen is always hidden, as there
    weight: ClassVar[float] = 50.0
    loss_unit = "nats a hidden token + 50 x nats a judged one"

    def __call__(self, rows: list[Row]) -> Batch:
        # For the generator's choices, on any device; one a row, for a batch may be shared out among processes.
        seeds = [int(generator(self.seed, row["draw"]).integers(2**31)) for row in rows]
        return super().__call__(rows) | {"choice_seed": torch.tensor(seeds)}

    def both(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[Sums, torch.Tensor, torch.Tensor]:
        """The losses, sums over hidden tokens; the discriminator's logits, and what it should have seen."""
        seed = int(inputs.pop("choice_seed")[0])
        hidden, targets, _ = self.hidden(model.generator, labels, **inputs)
        total, drawn = fill_in(hidden, targets, model, seed)
        scores, is_replaced = judge(model, labels, drawn, **inputs)
        found = F.binary_cross_entropy_with_logits(scores, is_replaced.float(), reduction="sum") / max(len(scores), 1)
        count = (labels != IGNORED).sum()
        sums = {"loss": total + self.weight * found * count, "generator_loss": total, "count": count}
        return sums, scores, is_replaced

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        sums, _, _ = self.both(model, labels, **inputs)
        return sums["loss"], sums["count"]

    def sums(self, model: Any, labels: torch.Tensor, **inputs: Any) -> Sums:
        sums, scores, is_replaced = self.both(model, labels, **inputs)
        return sums | count_scores(scores, is_replaced)

    def summary(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        positive, negative = sums.pop("positive"), sums.pop("negative")
        found = {"auc": area_under_curve(positive, negative), "replaced": float(positive.sum() / max(sums["count"], 1))}
        return super().summary(sums) | found


class Denoise(Objective):
    """denoise: the hidden spans of a text, each after its sentinel (`--corruption spans`, Raffel et al. 2019,
    https://arxiv.org/abs/1910.10683), or the whole text out of one with spans gone (`infilling`, Lewis et al. 2019,
    https://arxiv.org/abs/1910.13461): `-log p(target | source)` a token. Options: `mlm_probability`,
    `mean_noise_span_length`."""

    starts = False
    least_length = 3  # two tokens and the end

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int, **options: Any):
        super().__init__(tokenizer, max_length - 1, seed, **options)  # room for the end
        self.longest = max_length
        # Of a stream several processes get batches in one, which must then be of one width.
        self.fixed = options.get("streaming", False) and options.get("corruption") == "infilling"
        self.sentinels = sentinels(tokenizer)

    def example(self, row: Row) -> dict[str, np.ndarray]:
        ids, end, draw = row["input_ids"], [self.tokenizer.eos_token_id], self.draw(row)
        mean = self.options.get("mean_noise_span_length", 3.0)
        if self.options.get("corruption", "spans") == "infilling":
            share = self.options.get("mlm_probability", 0.3)
            source, target = infill(ids, draw, self.tokenizer.mask_token_id, share, mean), ids
        else:
            share = self.options.get("mlm_probability", 0.15)
            source, target = corrupt_spans(ids, draw, self.sentinels, share, mean)
        return {"input_ids": np.concatenate([source, end]), "labels": np.concatenate([target, end])}

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        outputs = model.model(
            **inputs, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels), use_cache=False
        )
        where = (labels.reshape(-1) != IGNORED).nonzero().squeeze(1)
        states = outputs.last_hidden_state.flatten(0, 1).index_select(0, where)
        return states * model.config.decoder.logit_scale, labels.reshape(-1).index_select(0, where), outputs


class Contrastive(Objective):
    """contrastive: of all second texts in the batch the one that belongs to the first, and the other way round:
    `-log softmax(cos(a_i, b_j) / t)_i`, mean of both (Gao et al. 2021, https://arxiv.org/abs/2104.08821; Oord et al.
    2018, https://arxiv.org/abs/1807.03748). `--views neighbours`: b follows a; `dropout`: b is a under
    other dropout. Other processes' texts are negatives too."""

    streams = False
    loss_unit = "nats a pair"
    least_length = 3  # two ends and a token

    def rows(self, documents: Dataset, num_proc: int | None = None, name: str = "the dataset") -> Dataset:
        pairs = segment_pairs(documents, self.tokenizer, self.max_length - 2, whole=False, num_proc=num_proc)
        return pairs.shuffle(seed=0)  # evaluation goes in order, and a text would find itself in the pair before

    def __call__(self, rows: list[Row]) -> Batch:
        second = "first" if self.options.get("views") == "dropout" else "second"
        ends = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        texts = [row["first"] for row in rows] + [row[second] for row in rows]
        batch = self.padded([{"input_ids": np.concatenate([ends[0], ids, ends[1]])} for ids in texts], rows * 2)
        real = torch.tensor([row["draw"] != FILLER for row in rows])
        return batch | {"labels": torch.arange(len(rows)).masked_fill(~real, IGNORED)}

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        ones, others = embed(model, **inputs).chunk(2)
        return self.both_ways(ones, others, labels != IGNORED)

    def both_ways(self, ones: torch.Tensor, others: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The loss of texts and their partners, a sum, and over how many."""
        scores, targets = gathered(ones, others, real, self.options.get("temperature", 0.05))
        both = [F.cross_entropy(score[real], targets[real], reduction="sum") for score in scores]
        return (both[0] + both[1]) / 2, real.sum()

    def sums(self, model: Any, labels: torch.Tensor, **inputs: Any) -> Sums:
        ones, others = embed(model, **inputs).chunk(2)
        total, count = self.both_ways(ones, others, labels != IGNORED)
        real = (labels != IGNORED).nonzero().squeeze(1)
        scores = ones[real] @ others[real].T
        own = torch.arange(len(real), device=ones.device)
        right = (scores.argmax(-1) == own).sum() if len(real) else scores.sum()
        return {"loss": total, "count": count, "accuracy": right}


OBJECTIVES: dict[str, type[Objective]] = {
    "clm": CausalLM,
    "mlm": MaskedLM,
    "mlm+nsp": NextSentence,
    "rtd": ReplacedTokens,
    "denoise": Denoise,
    "contrastive": Contrastive,
}
