"""The encoder: a stack whose every token sees every other, and the heads over it."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_layers import GenericForQuestionAnswering
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration import TunerEncoderConfig
from .encoder_stack import TunerEncoderStack, TunerHead, TunerPreTrainingOutput
from .registration import register
from .stack import TunerPreTrainedModel


class TunerEncoderPreTrainedModel(TunerPreTrainedModel):
    """Every class over a `TunerEncoderConfig`."""

    config: TunerEncoderConfig
    config_class = TunerEncoderConfig


class TunerEncoderModel(TunerEncoderStack):
    """Token ids to hidden states, and with `add_pooling_layer` one vector for the sequence, from its first token."""


# Concrete classes: sentence-transformers reads the fields of an output from the annotation of `forward`.
HeadOutput: TypeAlias = MaskedLMOutput | NextSentencePredictorOutput | SequenceClassifierOutput | TokenClassifierOutput


class TunerEncoderWithHead(TunerEncoderPreTrainedModel):
    """An encoder, a prediction over its output, and the loss of that prediction."""

    has_pooler = False
    output_class: type[HeadOutput] = TokenClassifierOutput

    def __init__(self, config: TunerEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TunerEncoderModel(config, add_pooling_layer=self.has_pooler)
        self.build_head(config)
        self.post_init()

    def build_head(self, config: TunerEncoderConfig) -> None:
        """Make the modules of the head."""
        raise NotImplementedError

    def predict(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """The logits."""
        raise NotImplementedError

    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """The mean over what is labelled. transformers chooses it by the class's name; each takes what it needs."""
        sizes = {"vocab_size": self.config.vocab_size, "config": self.config}
        return self.loss_function(logits=logits, pooled_logits=logits, labels=labels, **sizes, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HeadOutput:
        """As `TunerEncoderModel`, and `labels` as the class says; returns `logits`, and `loss` with labels."""
        options = self.with_router(labels, kwargs)
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options)
        logits, loss = self.predict(outputs), None
        if labels is not None:
            loss = self.loss(logits, labels, attention_mask, **kwargs)
            balance = self.balance(outputs.get("router_logits"), attention_mask)
            loss = self.add_balance(loss, balance, labels, kwargs.get("num_items_in_batch"))
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TunerEncoderForMaskedLM(TunerEncoderWithHead):
    """A guess at every token, of which the masked ones count (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).

    `labels` `(batch, time)`: the token at each position, -100 for none; `logits` `(batch, time, vocab_size)`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    output_class = MaskedLMOutput

    def build_head(self, config: TunerEncoderConfig) -> None:
        self.prediction = TunerHead(config, config.embedding_size, config.head_act, has_norm=True)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=config.lm_head_bias)

    def predict(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.lm_head(self.prediction(outputs.last_hidden_state))


class TunerEncoderForPreTraining(TunerEncoderForMaskedLM):
    """Masked tokens, and whether the second segment follows the first (Devlin et al. 2018)."""

    has_pooler = True

    def build_head(self, config: TunerEncoderConfig) -> None:
        super().build_head(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.loss_type = "ForMaskedLM"  # by its name it would be given the loss that shifts

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TunerPreTrainingOutput:
        """`next_sentence_label` `(batch,)`: 0 where the second segment follows, 1 where it is another's.

        As a share of a larger batch's loss, of `num_items_in_batch` labels, a row counts by the labels in it.
        """
        options = self.with_router(labels, kwargs)
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options)
        logits, relation = self.predict(outputs), self.seq_relationship(outputs.pooler_output)
        losses, items = [], kwargs.get("num_items_in_batch")
        if labels is not None:
            balance = self.balance(outputs.get("router_logits"), attention_mask)
            losses.append(self.add_balance(self.loss(logits, labels, attention_mask, **kwargs), balance, labels, items))
        if next_sentence_label is not None:
            if labels is None or items is None:
                losses.append(F.cross_entropy(relation.float(), next_sentence_label.view(-1)))
            else:
                each = F.cross_entropy(relation.float(), next_sentence_label.view(-1), reduction="none")
                losses.append((each * (labels != -100).sum(dim=1)).sum() / items)
        return TunerPreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=logits,
            seq_relationship_logits=relation,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TunerEncoderForReplacedTokenDetection(TunerEncoderWithHead):
    """Whether each token is the original one (Clark et al. 2020, https://arxiv.org/abs/2003.10555).

    `labels` `(batch, time)`: 1 for a replaced token, -100 for one that does not count; `logits` `(batch, time)`.
    """

    def build_head(self, config: TunerEncoderConfig) -> None:
        self.prediction = TunerHead(config, config.hidden_size, config.head_act)
        self.score = nn.Linear(config.hidden_size, 1)

    def predict(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.score(self.prediction(outputs.last_hidden_state)).squeeze(-1)

    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        counts, items = (
            labels != -100 if mask is None else (labels != -100) & mask.bool(),
            kwargs.get("num_items_in_batch"),
        )
        reduction = "mean" if items is None else "sum"
        loss = F.binary_cross_entropy_with_logits(logits[counts].float(), labels[counts].float(), reduction=reduction)
        return loss if items is None else loss / items


class TunerEncoderForSequenceClassification(TunerEncoderWithHead):
    """A class, several, or a number for every sequence, from the pooled first token.

    `labels` `(batch,)`, or `(batch, num_labels)` where several hold; `logits` `(batch, num_labels)`.
    """

    has_pooler = True
    output_class = SequenceClassifierOutput

    def build_head(self, config: TunerEncoderConfig) -> None:
        dropout = config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)

    def predict(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.score(self.dropout(outputs.pooler_output))


class TunerEncoderForTokenClassification(TunerEncoderForSequenceClassification):
    """A class for every token. `labels` `(batch, time)`, -100 for none; `logits` `(batch, time, num_labels)`."""

    has_pooler = False
    output_class = TokenClassifierOutput

    def predict(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.score(self.dropout(outputs.last_hidden_state))


def choice_loss(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None, **_: Any) -> torch.Tensor:
    """Of one class a row, whatever the configuration says of its labels."""
    return fixed_cross_entropy(logits.float(), labels.view(-1), num_items_in_batch)


class TunerEncoderForNextSentencePrediction(TunerEncoderWithHead):
    """Whether the second segment follows the first. `labels` `(batch,)`: 0 where it does; `logits` `(batch, 2)`."""

    has_pooler = True
    output_class = NextSentencePredictorOutput

    def build_head(self, config: TunerEncoderConfig) -> None:
        self.loss_function = choice_loss
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def predict(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.seq_relationship(outputs.pooler_output)


class TunerEncoderForMultipleChoice(TunerEncoderForSequenceClassification):
    """Which of several sequences is the right one (Devlin et al. 2018, section 4.4)."""

    def build_head(self, config: TunerEncoderConfig) -> None:
        super().build_head(config)
        self.loss_function = choice_loss
        self.score = nn.Linear(config.hidden_size, 1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Inputs `(batch, choices, time)`, `labels` `(batch,)`, `logits` `(batch, choices)`."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        rows = [t if t is None else t.flatten(0, 1) for t in inputs]
        choices = next(t.shape[1] for t in (input_ids, inputs_embeds) if t is not None)
        outputs = self.model(*rows, **self.with_router(labels, kwargs))
        logits, loss = self.predict(outputs).view(-1, choices), None
        if labels is not None:
            loss = self.loss(logits, labels, None, **kwargs)
            balance = self.balance(outputs.get("router_logits"), rows[1])
            loss = self.add_balance(loss, balance, labels, kwargs.get("num_items_in_batch"))
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TunerEncoderForQuestionAnswering(GenericForQuestionAnswering, TunerEncoderPreTrainedModel):
    """Where an answer begins and ends."""

    def __init__(self, config: TunerEncoderConfig):
        # Not the generic one's: that asks an Auto class, which knows nothing of code that came with a checkpoint.
        super(GenericForQuestionAnswering, self).__init__(config)
        self.model = TunerEncoderModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


register(
    TunerEncoderConfig,
    AutoModelForTextEncoding=TunerEncoderModel,
    AutoModel=TunerEncoderModel,
    AutoModelForMaskedLM=TunerEncoderForMaskedLM,
    AutoModelForPreTraining=TunerEncoderForPreTraining,
    AutoModelForNextSentencePrediction=TunerEncoderForNextSentencePrediction,
    AutoModelForMultipleChoice=TunerEncoderForMultipleChoice,
    AutoModelForQuestionAnswering=TunerEncoderForQuestionAnswering,
    AutoModelForSequenceClassification=TunerEncoderForSequenceClassification,
    AutoModelForTokenClassification=TunerEncoderForTokenClassification,
)
TunerEncoderForReplacedTokenDetection.register_for_auto_class("AutoModelForPreTraining")
