"""The objectives of pretraining, by the name that `--objective` takes."""

from __future__ import annotations

from typing import Any

from tuner.objectives.base import Objective
from tuner.objectives.causal_lm import CausalLM
from tuner.objectives.classification import Classification
from tuner.objectives.contrastive import Contrastive
from tuner.objectives.denoise import Denoise
from tuner.objectives.electra import ReplacedTokens
from tuner.objectives.masked_lm import MaskedLM, NextSentence
from tuner.objectives.question_answering import QuestionAnswering
from tuner.objectives.tagging import Tagging

PRETRAINING: dict[str, type[Objective[Any]]] = {
    kind.name: kind for kind in (CausalLM, MaskedLM, NextSentence, ReplacedTokens, Denoise, Contrastive)
}
# The methods for rows with labels, by the kind of rows.
METHODS: dict[str, type[Objective[Any]]] = {
    kind: method for method in (Classification, Tagging, QuestionAnswering) for kind in method.kinds
}
