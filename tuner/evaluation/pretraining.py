"""The report of a pretraining run: what the objective's metrics are worth, beside baselines from the same text.

| objective | is set against |
|---|---|
| clm | perplexity a byte of an interpolated Kneser-Ney 5-gram |
| mlm, mlm+nsp | the most frequent token, and a bigram that looks both ways; chance |
| rtd | chance |
| denoise | the untrained model, and copying what stands before a span |
| contrastive | cosine of TF-IDF vectors |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from tuner.corpus.corrupt import IGNORED
from tuner.corpus.segments import parts
from tuner.corpus.stream import TokenStream
from tuner.data.draws import Draws
from tuner.errors import ArgumentError
from tuner.evaluation.baselines.ngrams import KneserNey, MaskedBigram, most_frequent_token, perplexity_per_byte
from tuner.evaluation.baselines.retrieval import embedding_retrieval_at_1, tfidf_retrieval_at_1
from tuner.evaluation.baselines.spans import copy_spans, count_matches, spans_of, wanted_spans
from tuner.evaluation.report import plot_losses
from tuner.loading.objective_model import load_pretraining_model
from tuner.objectives.embed import embed
from tuner.objectives.pretraining import Denoise
from tuner.train.pretrainer import PretrainTrainer
from tuner.train.pretraining import Documents, Examples
from tuner.train.run import Run, say

Comparison = dict[str, dict[str, float]]  # metric to {who: how much}

# Rows that are generated for; texts that compete for a query.
GENERATED, GROUP = 256, 64


@dataclass
class End:
    """What a run came to.

    Attributes:
        after, before: metrics of the last evaluation, and of that before the first step, if there was one.
    """

    trainer: PretrainTrainer
    run: Run
    documents: Documents
    examples: Examples
    after: dict[str, float]
    before: dict[str, Any]

    def before_and_after(self, name: str) -> dict[str, float]:
        """A metric of the untrained and of the trained model."""
        before = {"untrained": self.before[f"eval_{name}"]} if f"eval_{name}" in self.before else {}
        return {**before, "trained": self.after[f"eval_{name}"]}

    def held_out(self, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """The validation examples in batches of `size`."""
        rows = Draws(self.examples.eval)
        for start in range(0, len(rows), size):
            yield self.trainer.objective([rows[number] for number in range(start, min(start + size, len(rows)))])


def write_pretraining_report(
    trainer: PretrainTrainer, run: Run, documents: Documents, examples: Examples
) -> dict[str, Any]:
    """Evaluate, compare with the baselines, and write `metrics.json` and `loss.png` into the run's folder.

    Every process evaluates; the main one compares, writes and prints.

    Returns:
        What `metrics.json` holds.
    """
    history = trainer.state.log_history
    final = trainer.evaluate()
    if not trainer.is_world_process_zero():
        return final
    untrained: dict[str, Any] = next(
        (entry for entry in history if entry.get("step") == 0 and "eval_loss" in entry), {}
    )
    args: Any = run.args
    compare = _streamed if isinstance(examples.train, TokenStream) else COMPARISONS[args.objective]
    metrics = {
        "objective": args.objective,
        "steps": trainer.state.global_step,
        "eval": {name.removeprefix("eval_"): value for name, value in final.items()},
        "comparison": compare(End(trainer, run, documents, examples, final, untrained)),
        "log": history,
    }
    (run.folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    plot_losses(run.folder / "loss.png", losses, evaluations, unit=trainer.objective.loss_unit)
    show_comparison(metrics["comparison"], args.objective)
    Console(highlight=False).print(f"Written to {run.folder}: the model, metrics.json, loss.png, run.yaml")
    return metrics


def show_comparison(comparison: Comparison, objective: str) -> None:
    """Print a line for each metric, a column for each who is compared."""
    table = Table(title=f"{objective}, on the validation documents", title_justify="left")
    names = list(dict.fromkeys(name for values in comparison.values() for name in values))
    for column in ("", *names):
        table.add_column(column, justify="right" if column else "left")
    for metric, values in comparison.items():
        table.add_row(metric, *(f"{values[name]:.4g}" if name in values else "-" for name in names))
    Console(highlight=False).print(table)


def _streamed(end: End) -> Comparison:
    """Of a stream no baseline is counted: it would have to be read once more."""
    return {"nats a token": end.before_and_after("loss")}


def _causal(end: End) -> Comparison:
    """Both are asked for the same tokens: all of a sequence but its first."""
    tokens = list(_sequences(end.examples.eval))
    decode = end.trainer.processing_class.decode
    size = sum(len(decode(ids, skip_special_tokens=True).encode()) for ids in tokens)  # of what is asked for
    count = sum(len(ids) - 1 for ids in tokens)
    grams = KneserNey.fit(_sequences(end.examples.train), len(end.trainer.processing_class))
    nats = -sum(float(grams.log_probabilities(ids)[1:].sum()) for ids in tokens)
    perplexity = {"5-gram": perplexity_per_byte(nats, size)}
    for name, loss in (("untrained", end.before.get("eval_loss")), ("trained", end.after["eval_loss"])):
        if loss is not None:
            perplexity[name] = perplexity_per_byte(loss * count, size)
    losses = {"5-gram": nats / count, "untrained": end.before.get("eval_loss"), "trained": end.after["eval_loss"]}
    return {"perplexity a byte": perplexity, "nats a token": {k: v for k, v in losses.items() if v is not None}}


def _sequences(blocks: Dataset) -> Iterator[np.ndarray]:
    """The sequences of packed blocks: positions start again with each."""
    for block in blocks.with_format("numpy"):
        starts = np.flatnonzero(block["position_ids"] == 0) if "position_ids" in block else [0]
        yield from np.split(block["input_ids"], starts[1:])


def _masked(end: End) -> Comparison:
    special, pad = end.trainer.objective.special, end.trainer.processing_class.pad_token_id
    rows = Draws(end.examples.train)
    cls, sep = ([getattr(end.trainer.processing_class, name)] for name in ("cls_token_id", "sep_token_id"))
    plain = [
        row["input_ids"] if "input_ids" in row else np.concatenate([cls, row["first"], sep, row["second"], sep])
        for row in (rows[number] for number in range(len(rows)))
    ]
    bigram = MaskedBigram.fit(plain, len(end.trainer.processing_class))
    frequent = most_frequent_token([ids[~special[ids]] for ids in plain])
    right = np.zeros(3)
    for batch in end.held_out(end.trainer.args.eval_batch_size):
        for ids, labels in zip(batch["input_ids"].numpy(), batch["labels"].numpy(), strict=True):
            ids, labels = ids[ids != pad], labels[ids != pad]
            hidden = labels != IGNORED
            found = bigram.predict(ids, hidden)
            right += [(labels[hidden] == frequent).sum(), (found == labels[hidden]).sum(), hidden.sum()]
    accuracy = {"most frequent": right[0] / right[2], "bigram, both ways": right[1] / right[2]}
    comparison = {"accuracy": {**accuracy, **end.before_and_after("accuracy")}}
    if "eval_nsp_accuracy" in end.after:
        comparison["next sentence"] = {"chance": 0.5, **end.before_and_after("nsp_accuracy")}
    return {name: {k: float(v) for k, v in values.items()} for name, values in comparison.items()}


def _replaced(end: End) -> Comparison:
    """How good the generator is says how hard it was made."""
    return {
        "area under the ROC curve": {"chance": 0.5, **end.before_and_after("auc")},
        "generator: nats a hidden token": end.before_and_after("generator_loss"),
        "generator: hidden tokens replaced": end.before_and_after("replaced"),
    }


def _denoised(end: End) -> Comparison:
    """Spans written exactly without looking at the target, by both models and by copying what stands before them."""
    tokenizer, objective = end.trainer.processing_class, cast(Denoise, end.trainer.objective)
    losses = {"nats a token": end.before_and_after("loss")}
    if objective.options.get("corruption") == "infilling":  # all is to be written, and there are no spans
        return losses
    batch = next(end.held_out(GENERATED))
    sources, targets = batch["input_ids"].numpy(), batch["labels"].numpy()
    sentinels = set(objective.sentinels.tolist())
    wanted = [wanted_spans(target, source, sentinels) for target, source in zip(targets, sources, strict=True)]
    written = {"copying": [copy_spans(ids, spans) for ids, spans in zip(sources, wanted, strict=True)]}
    trained = end.trainer.accelerator.unwrap_model(end.trainer.model)
    # By the seed, or the checkpoint, that the run began with.
    untrained = load_pretraining_model(end.run.args, tokenizer).to(trained.device)
    for name, model in (("untrained", untrained), ("trained", trained)):
        written[name] = [spans_of(ids, sentinels) for ids in _generate(model.eval(), batch)]
    count = sum(len(spans) for spans in wanted)
    match = {name: sum(map(count_matches, spans, wanted)) / max(count, 1) for name, spans in written.items()}
    return {"spans written exactly": match, **losses}


@torch.no_grad()
def _generate(model: Any, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """What a model writes for each row, as long as the longest target."""
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask") if name in batch}
    ids = model.generate(**inputs, max_new_tokens=batch["labels"].shape[1], do_sample=False, num_beams=1)
    found: np.ndarray = ids.cpu().numpy()
    return found


def _contrasted(end: End) -> Comparison:
    pairs = [pair for text in end.documents.eval["text"] for lines in [parts(text)] for pair in pairwise(lines)]
    # Neighbouring pairs share a line: apart, so that no query finds itself.
    order = np.random.default_rng(0).permutation(len(pairs))
    queries, answers = ([pairs[number][side] for number in order] for side in (0, 1))
    fit_on = [line for text in end.documents.train["text"] for line in parts(text)]
    vectors = [_embeddings(end.trainer, texts) for texts in (queries, answers)]
    group = min(GROUP, len(pairs))
    found = {"chance": 1 / group}
    try:
        found["TF-IDF"] = tfidf_retrieval_at_1(queries, answers, group, fit_on=fit_on)
    except (ArgumentError, ValueError) as error:  # scikit-learn is missing, or no text has a word
        say(f"No TF-IDF to compare with: {error}")
    found["trained"] = embedding_retrieval_at_1(vectors[0], vectors[1], group)
    comparison = {f"retrieval at 1 of {group}": found}
    if end.trainer.objective.options.get("views") != "dropout":  # in evaluation those views are one and the same
        batches = f"the same in batches of {end.trainer.args.eval_batch_size}"  # also of what the run began with
        comparison[batches] = end.before_and_after("accuracy")
    return comparison


def _embeddings(trainer: PretrainTrainer, texts: list[str]) -> torch.Tensor:
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model).eval(), trainer.processing_class
    found = []
    for start in range(0, len(texts), 256):
        inputs = tokenizer(
            texts[start : start + 256],
            padding=True,
            truncation=True,
            max_length=trainer.objective.max_length,
            return_tensors="pt",
        )
        with torch.no_grad():
            found.append(
                embed(model, inputs["attention_mask"].to(model.device), input_ids=inputs["input_ids"].to(model.device))
            )
    return torch.cat(found).cpu()


COMPARISONS: dict[str, Callable[..., Comparison]] = {
    "clm": _causal,
    "mlm": _masked,
    "mlm+nsp": _masked,
    "rtd": _replaced,
    "denoise": _denoised,
    "contrastive": _contrasted,
}
