"""contrastive: embeddings of texts that belong together are close (and their likeness across processes)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from transformers import PreTrainedModel

from tuner.corpus.segments import parts, segment_pairs
from tuner.corpus.views import VIEWS, texts_with_view
from tuner.data.collate import IGNORED
from tuner.data.draws import FILLER
from tuner.errors import ArgumentError, ModelError
from tuner.evaluation.baselines.ngrams import is_small
from tuner.evaluation.baselines.retrieval import embedding_retrieval_at_1, tfidf_retrieval_at_1
from tuner.objectives.arguments import ContrastiveArguments
from tuner.objectives.base import Batch, Objective, Row, Sums, own_class
from tuner.objectives.records import Comparison, Outcome

# Parts of a batch; their lengths are rounded up to a multiple, so that kernels meet few sizes.
PARTS, MULTIPLE = 4, 16
# Texts that compete for a query in the comparison.
GROUP = 64


class Contrastive(Objective[ContrastiveArguments]):
    """contrastive: of all second texts in the batch the one that belongs to the first, and the other way round:
    `-log softmax(cos(a_i, b_j) / t)_i`, mean of both (Gao et al. 2021, https://arxiv.org/abs/2104.08821; Oord et al.
    2018, https://arxiv.org/abs/1807.03748). `--views neighbours`: b follows a; `dropout`: b is a under
    other dropout; `order`, `synonyms`, `deletion`: b is another view of a's text, drawn anew in every epoch. Other
    processes' texts are negatives too."""

    arguments = ContrastiveArguments
    name = "contrastive"
    tokens = ("cls_token", "sep_token", "mask_token")
    vocabulary, needs_end = "mlm", False
    model, mixes, joins = "encoder", True, True
    loss_unit = "nats a pair"
    least_length = 3  # two ends and a token
    refused = ("z_loss", "label_smoothing_factor")
    rivals = "processes"

    def check_model(self, model: PreTrainedModel) -> None:
        drops = any(getattr(model.config, name, 0) for name in ("hidden_dropout", "attention_dropout"))
        if self.args.views == "dropout" and not drops:
            raise ModelError("--views dropout needs a model with dropout (a new one: --dropout 0.1).")

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, None]:
        longest = self.args.max_length - 2
        if self.args.views in VIEWS:
            how = (self.args.views, self.tokenizer, longest, self.args.dataset_num_proc)
            texts, without = texts_with_view(rows, *how)
            if without and PartialState().is_main_process:
                print(f"{name}: {without:,} of {without + len(texts):,} texts have no such view (--views {how[0]}).")
            return texts, None
        pairs = segment_pairs(rows, self.tokenizer, longest, False, self.args.dataset_num_proc, name)
        return pairs.shuffle(seed=0), None  # evaluation goes in order, and a text would find itself in the pair before

    def __call__(self, rows: list[Row]) -> Batch:
        start, end = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        texts = self._both(rows)
        batch = self.padded([{"input_ids": np.concatenate([start, ids, end])} for ids in texts], rows * 2)
        numbers = [row["row"] for row in rows]  # one that comes twice, as shares may have it, would be its own rival
        real = torch.tensor([row["draw"] != FILLER and row["row"] not in numbers[:n] for n, row in enumerate(rows)])
        return batch | {"labels": torch.arange(len(rows)).masked_fill(~real, IGNORED)}

    def _both(self, rows: list[Row]) -> list[Any]:
        """Token ids of each row's first text, then of each row's second."""
        if self.args.views not in VIEWS:
            second = "first" if self.args.views == "dropout" else "second"
            return [row["first"] for row in rows] + [row[second] for row in rows]
        view, texts = VIEWS[self.args.views], [str(row["text"]) for row in rows]
        texts += [view(text, self.draw(row)) for text, row in zip(texts, rows, strict=True)]
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [ids[: self.args.max_length - 2] for ids in encoded]

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        ones, others = embed(model, **inputs).chunk(2)
        real = labels != IGNORED
        found = {"loss": contrast(ones, others, real, self.args.temperature), "count": real.sum()}
        if training:
            return found
        best = (ones @ others.T).masked_fill(~real, -torch.inf).argmax(-1)  # of this process's batch alone
        return found | {"accuracy": ((best == torch.arange(len(ones), device=ones.device)) & real).sum()}

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside the cosine of TF-IDF vectors."""
        losses = outcome.before_and_after("loss")
        pairs = [pair for text in outcome.rows.eval["text"] for lines in [parts(text)] for pair in pairwise(lines)]
        if not pairs:  # other views than neighbours are of texts of one line too
            return {self.loss_unit: losses}
        # Neighbouring pairs share a line: apart, so that no query finds itself.
        order = np.random.default_rng(0).permutation(len(pairs))
        queries, answers = ([pairs[number][side] for number in order] for side in (0, 1))
        vectors = [self._embeddings(outcome.model, texts) for texts in (queries, answers)]
        group = min(GROUP, len(pairs))
        found = {"chance": 1 / group}
        if is_small(outcome.rows.train):
            fit_on = [line for text in outcome.rows.train["text"] for line in parts(text)]
            try:
                found["TF-IDF"] = tfidf_retrieval_at_1(queries, answers, group, fit_on=fit_on)
            except (ArgumentError, ValueError) as error:  # scikit-learn is missing, or no text has a word
                print(f"No TF-IDF to compare with: {error}")
        found["trained"] = embedding_retrieval_at_1(vectors[0], vectors[1], group)
        comparison = {f"retrieval at 1 of {group}": found, self.loss_unit: losses}
        if self.args.views != "dropout":  # in evaluation those views are one and the same
            batches = f"the same in batches of {self.args.per_device_eval_batch_size}"
            comparison[batches] = outcome.before_and_after("accuracy")
        return comparison

    @torch.no_grad()
    def _embeddings(self, model: Any, texts: list[str]) -> torch.Tensor:
        found, how = [], {"padding": True, "truncation": True, "max_length": self.args.max_length}
        for start in range(0, len(texts), 256):
            inputs = self.tokenizer(texts[start : start + 256], return_tensors="pt", **how)
            mask, ids = (inputs[name].to(model.device) for name in ("attention_mask", "input_ids"))
            found.append(embed(model.eval(), mask, input_ids=ids))
        return torch.cat(found).cpu()


def embed(model: Any, attention_mask: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
    """The mean of a text's tokens, of length 1: `(batch, hidden_size)` in float32 (Reimers & Gurevych 2019,
    https://arxiv.org/abs/1908.10084).

    Texts are padded at their end, and computed in `PARTS` parts of like length: short ones do not wait for long ones.
    """
    if attention_mask is None:
        return F.normalize(_states(model, inputs).mean(dim=1), dim=-1)
    lengths, order = attention_mask.sum(dim=1).sort(stable=True)
    longest = torch.stack([part[-1] for part in lengths.chunk(PARTS)]).tolist()  # an accelerator is waited for once
    found = []
    for rows, length in zip(order.chunk(PARTS), longest, strict=True):
        time = min(-(-length // MULTIPLE) * MULTIPLE, attention_mask.shape[1])
        mask = attention_mask[rows, :time]
        part = {name: tensor[rows, :time] for name, tensor in inputs.items()}
        states = _states(model, {**part, "attention_mask": mask})
        found.append((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1))
    return F.normalize(torch.cat(found)[order.argsort()], dim=-1)


def _states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    # The encoder's own forward: a model's is the one with the loss in it.
    return own_class(model).forward(model, **inputs).last_hidden_state.float()


def contrast(ones: torch.Tensor, others: torch.Tensor, real: torch.Tensor, temperature: float) -> torch.Tensor:
    """The loss of texts and their partners, a sum over those that are `real` `(batch,)`: ones against all processes'
    others, others against all ones, halved."""
    first, all_ones, all_others, counted = 0, ones, others, real
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        first = len(ones) * torch.distributed.get_rank()
        all_ones, all_others = torch.cat(all_gather(ones)), torch.cat(all_gather(others))
        counted = torch.cat(all_gather(real.float())) > 0
    partners = torch.arange(first, first + len(ones), device=ones.device)[real]
    scores = [(ones @ all_others.T / temperature), (others @ all_ones.T / temperature)]
    losses = [
        F.cross_entropy(score.masked_fill(~counted, -torch.inf)[real], partners, reduction="sum") for score in scores
    ]
    return (losses[0] + losses[1]) / 2
