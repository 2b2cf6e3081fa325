"""A model that is evaluated: what kind it is, with its tokenizer, and the likelihoods that it gives to tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerBase,
)

import tuner.model  # noqa: F401  (registers our classes with the Auto classes)
from tuner.config.evaluation import EvaluationArguments
from tuner.data.collate import IGNORED
from tuner.errors import ModelError, first_line
from tuner.loading.checkpoints import (
    adapter_base,
    load_pretrained,
    pretrained_decoder,
    require_vocabulary,
    resolve,
    set_ends,
)
from tuner.ops.chunked_loss import chunked_cross_entropy
from tuner.text.load_tokenizer import load_pretrained_tokenizer
from tuner.train.probe import probe

# What loads a kind of model.
LOADERS: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classifier": AutoModelForSequenceClassification,
    "multilabel": AutoModelForSequenceClassification,
    "regressor": AutoModelForSequenceClassification,
    "tagger": AutoModelForTokenClassification,
    "reader": AutoModelForQuestionAnswering,
}
CALLED = {
    "causal": "a causal language model",
    "seq2seq": "an encoder-decoder",
    "classifier": "a text classifier",
    "multilabel": "a text classifier of several labels",
    "regressor": "a text classifier with one output, a number",
    "tagger": "a token classifier",
    "reader": "a model for questions on a text",
}
# Ends of an architecture's name, and PEFT's names of the same.
ENDS = {
    "ForSequenceClassification": "classifier",
    "ForTokenClassification": "tagger",
    "ForQuestionAnswering": "reader",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "SEQ_CLS": "classifier",
    "TOKEN_CLS": "tagger",
    "QUESTION_ANS": "reader",
    "CAUSAL_LM": "causal",
    "SEQ_2_SEQ_LM": "seq2seq",
}
# The longest sequence where none is named, whatever a model could read.
LONGEST = 2048
# Numbers in a matrix of logits, where a model needs all of them at once.
LOGITS = 2**28


def kind_of(name: str, args: EvaluationArguments) -> str:
    """Which key of `LOADERS` a checkpoint is; a `ModelError` where it is none, or cannot be read."""
    path, how = resolve(name)
    if "gguf_file" in how:
        return "causal"
    source = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    if base := adapter_base(path):
        said = json.loads(Path(path, "adapter_config.json").read_text("utf-8")).get("task_type")
        return ENDS[said] if said in ENDS else kind_of(base[0], args)
    try:
        config = AutoConfig.from_pretrained(path, **source)
    except Exception as error:  # a damaged file fails in every way that Python can
        raise ModelError(f"{name} could not be loaded: {first_line(error)}") from error
    architectures = config.architectures or []
    found = next((kind for end, kind in ENDS.items() for named in architectures if named.endswith(end)), None)
    if found is None and config.is_encoder_decoder:
        found = "seq2seq"
    if found == "classifier" and config.problem_type == "multi_label_classification":
        found = "multilabel"
    if found == "classifier" and (config.problem_type == "regression" or config.num_labels == 1):
        found = "regressor"
    if found is None:
        known = ", ".join(CALLED.values())
        what = f"a {architectures[0]}" if architectures else f"a {config.model_type} model that does not say which"
        raise ModelError(f"{name} is {what}: no task evaluates that. Tasks are for {known}.")
    return found


@dataclass
class Subject:
    """A loaded model.

    Attributes:
        name: as it was named.
        kind: a key of `LOADERS`.
    """

    name: str
    kind: str
    model: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        return self.model.device

    def longest(self, asked: int | None, most_unasked: int = LONGEST) -> int:
        """The longest sequence, in tokens: what was asked for, which a `ModelError` refuses beyond the positions; else
        what the model reads, at most `most_unasked`."""
        config = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or LONGEST
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):
            most -= 2  # these count positions from the padding token's
        if asked and asked > most:
            raise ModelError(f"--max_length {asked}: {self.name} has {most} positions. Pass at most that.")
        return asked or min(most, most_unasked)

    @cached_property
    def trained(self) -> dict[str, Any]:
        """The arguments that it was trained with, where its folder says."""
        file = Path(self.name, "run.yaml")
        return (yaml.safe_load(file.read_text("utf-8")) or {}) if file.is_file() else {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of the outputs; those that nobody named are known by their numbers."""
        named = self.model.config.id2label
        return tuple(str(named[number]).removeprefix("LABEL_") for number in range(len(named)))

    @cached_property
    def chunked(self) -> bool:
        """Whether the loss is the cross-entropy of the head's output, so that logits need not be held."""
        return probe(self.model).chunked_loss

    @torch.no_grad()
    def losses(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int) -> list[np.ndarray]:
        """`-log p(token | those before it)` in nats of each token that has a label, of each sequence.

        Args:
            sequences: ids and labels `(time,)`, -100 where there is none; the first token never has one.
            batch_size: sequences computed at once, the longest first.
        """
        found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        asked = [n for n, (_, labels) in enumerate(sequences) if any(label != IGNORED for label in labels[1:])]
        order = sorted(asked, key=lambda number: -len(sequences[number][0]))
        while order:
            size = batch_size
            if not self.chunked:
                logits = len(sequences[order[0]][0]) * self.model.get_input_embeddings().weight.shape[0]
                size = min(batch_size, max(LOGITS // logits, 1))
            batch, order = order[:size], order[size:]
            for number, losses in zip(batch, self._losses([sequences[number] for number in batch]), strict=True):
                found[number] = losses
        return found

    def _losses(self, sequences: list[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
        time = max(len(ids) for ids, _ in sequences)
        # The last token is only predicted, so that a window may be one token longer than what the model reads.
        inputs = torch.full((len(sequences), time - 1), self.tokenizer.pad_token_id)
        labels, mask = torch.full_like(inputs, IGNORED), torch.zeros_like(inputs)
        for row, (ids, wanted) in enumerate(sequences):
            inputs[row, : len(ids) - 1], mask[row, : len(ids) - 1] = torch.as_tensor(ids)[:-1], 1
            labels[row, : len(ids) - 1] = torch.as_tensor(wanted)[1:]
        given = {"input_ids": inputs.to(self.device), "use_cache": False}
        if not mask.all():
            given["attention_mask"] = mask.to(self.device)
        asked = (labels != IGNORED).to(self.device)
        targets = labels.to(self.device)[asked]
        if self.chunked:
            states, head = self.model.base_model(**given).last_hidden_state[asked], self.model.get_output_embeddings()
            losses = chunked_cross_entropy(states, head.weight, targets, head.bias, reduction="none")
        else:
            losses = F.cross_entropy(self.model(**given).logits[asked].float(), targets, reduction="none")
        return [part.double().cpu().numpy() for part in losses.split(asked.sum(dim=1).tolist())]


def load_subject(name: str, args: EvaluationArguments) -> Subject:
    """Load a model, its head included, and its tokenizer, to be evaluated on this process's device.

    Raises:
        ModelError: a model of no kind that is evaluated, one that cannot be loaded, or none or another's tokenizer.
    """
    kind = kind_of(name, args)
    tokenizer = load_tokenizer(name, args)
    options: dict[str, Any] = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    if kind == "causal":
        model: Any = pretrained_decoder(name, tokenizer, **options)
        set_ends(model, tokenizer)
    else:
        model = load_pretrained(LOADERS[kind], name, torch.float32, **options)
        require_vocabulary(model, tokenizer, name)
    device = PartialState().device
    return Subject(name, kind, model.to(getattr(torch, args.dtype)).to(device).eval(), tokenizer)


def load_tokenizer(name: str, args: EvaluationArguments) -> PreTrainedTokenizerBase:
    """A model's tokenizer, an adapter's model's where the adapter has none, or the one that is named."""
    named = args.tokenizer_name_or_path or name
    path, how = resolve(named)
    if not args.tokenizer_name_or_path and (base := adapter_base(path)) and not Path(path, "tokenizer.json").is_file():
        path, how = resolve(base[0])
    how["trust_remote_code"] = args.trust_remote_code
    template = args.chat_template_path or ("chatml" if "gguf_file" in how else None)
    try:
        tokenizer = load_pretrained_tokenizer(path, template, needs_end=False, **how)
    except ModelError as error:
        cure = "" if args.tokenizer_name_or_path else " --tokenizer_name_or_path names another."
        raise ModelError(f"{error}{cure}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{named} has no tokenizer: pass --tokenizer_name_or_path.")
    return tokenizer
