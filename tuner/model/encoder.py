"""The encoder: a stack whose every token sees every other, and the heads over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GenericForQuestionAnswering
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration import TunerEncoderConfig
from .norm import build_norm
from .stack import TunerPreTrainedModel, TunerStack


class TunerEncoderPreTrainedModel(TunerPreTrainedModel):
    """Every class over a `TunerEncoderConfig`."""

    config: TunerEncoderConfig
    config_class = TunerEncoderConfig


class TunerEncoderModel(TunerStack):
    """Token ids to hidden states, and with `add_pooling_layer` one vector for the sequence, from its first token."""

    config: TunerEncoderConfig
    config_class = TunerEncoderConfig

    def __init__(self, config: TunerEncoderConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.pooler = TunerHead(config, config.hidden_size, config.pooler_act) if add_pooling_layer else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: `(batch, time)`; exactly one of it and `inputs_embeds` `(batch, time, embedding_size)`.
            attention_mask: `(batch, time)`, 1 for a token and 0 for padding.
            token_type_ids: `(batch, time)`, the segment of each token, 0 by default.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`.
        """
        hidden_states, positions = self.embed(
            input_ids, inputs_embeds, attention_mask, position_ids, token_type_ids=token_type_ids
        )
        masks = self.masks(hidden_states, attention_mask, position_ids)
        hidden_states = self.run(hidden_states, positions, masks, **kwargs)
        pooled = self.pooler(hidden_states[:, 0]) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class TunerHead(nn.Module):
    """A hidden layer before a prediction: `act(dense(x))`, and a norm where asked for."""

    def __init__(self, config: TunerEncoderConfig, size: int, activation: str, has_norm: bool = False):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, size)
        self.act_fn = ACT2FN[activation]
        self.norm = build_norm(config, size) if has_norm else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.act_fn(self.dense(hidden_states))
        return hidden_states if self.norm is None else self.norm(hidden_states)


class TunerEncoderWithHead(TunerEncoderPreTrainedModel):
    """An encoder, a prediction over its output, and the loss of that prediction."""

    has_pooler = False
    output_class: type[ModelOutput] = TokenClassifierOutput

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
        """The mean over what is labelled."""
        return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

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
    ) -> ModelOutput:
        """As `TunerEncoderModel`, and `labels` as the class says; returns `logits`, and `loss` with labels."""
        options = self.with_router(labels, kwargs)
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options)
        logits, loss = self.predict(outputs), None
        if labels is not None:
            loss = self.loss(logits, labels, attention_mask, **kwargs)
            items = kwargs.get("num_items_in_batch")
            balance = self.balance(outputs.get("router_logits"), attention_mask, labels, items)
            loss = loss if balance is None else loss + balance
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


@dataclass
class TunerPreTrainingOutput(ModelOutput):
    """Logits of tokens `(batch, time, vocab_size)` and of the order of segments `(batch, 2)`, and the sum of losses."""

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


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
        """`next_sentence_label` `(batch,)`: 0 where the second segment follows, 1 where it is another's."""
        options = self.with_router(labels, kwargs)
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options)
        logits, relation = self.predict(outputs), self.seq_relationship(outputs.pooler_output)
        losses = [] if labels is None else [self.loss(logits, labels, attention_mask, **kwargs)]
        items = kwargs.get("num_items_in_batch")
        balance = self.balance(outputs.get("router_logits"), attention_mask, labels, items)
        if losses and balance is not None:
            losses.append(balance)
        if next_sentence_label is not None:
            losses.append(F.cross_entropy(relation.float(), next_sentence_label.view(-1)))
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
        counts = labels != -100 if mask is None else (labels != -100) & mask.bool()
        return F.binary_cross_entropy_with_logits(logits[counts].float(), labels[counts].float())


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

    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)


class TunerEncoderForTokenClassification(TunerEncoderForSequenceClassification):
    """A class for every token. `labels` `(batch, time)`, -100 for none; `logits` `(batch, time, num_labels)`."""

    has_pooler = False
    output_class = TokenClassifierOutput

    def predict(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.score(self.dropout(outputs.last_hidden_state))

    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        return self.loss_function(logits=logits, labels=labels, config=self.config, **kwargs)


class TunerEncoderForQuestionAnswering(GenericForQuestionAnswering, TunerEncoderPreTrainedModel):
    """Where an answer begins and ends."""

    def __init__(self, config: TunerEncoderConfig):
        # Not the generic one's: that asks an Auto class, which knows nothing of code that came with a checkpoint.
        super(GenericForQuestionAnswering, self).__init__(config)
        self.model = TunerEncoderModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()
