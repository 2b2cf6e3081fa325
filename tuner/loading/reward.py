"""A reward model as a judge: conversations in, a number each out; of a folder, a Hub id, an adapter or an ensemble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tuner.data.collate import alike, pad
from tuner.errors import ModelError, first_line
from tuner.loading.checkpoints import adapter_base, load_pretrained, most_positions, resolve
from tuner.text.answers import PROBE, Message, training_tokenizer
from tuner.text.chat import encode_conversations, require_chat_template

ENSEMBLE = "ensemble.json"


class RewardModel:
    """Rewards of conversations, in nats: `sigmoid` of a difference is how likely one is the better answer to a prompt.

    Of an ensemble the reward is the mean of its members' less `spread` of their standard deviations, so that what they
    disagree on is no way to a high reward (Coste et al. 2023, https://arxiv.org/abs/2310.02743, section 3). A pair says
    nothing of a reward's zero, so each member's is moved to its mean on the validation rows.

    Args:
        models: with one output each, and the padding token that their heads take for one.
        tokenizer: with a chat template.
        centres: what to take off each model's rewards.
        spread: standard deviations that are taken off the mean.
        batch_size: conversations computed at once.
        max_length: tokens of one; what is longer is cut at the end. Without it nothing is.
    """

    def __init__(
        self,
        models: Sequence[Any],
        tokenizer: Any,
        centres: Sequence[float] = (0.0,),
        spread: float = 0.0,
        batch_size: int = 16,
        max_length: int | None = None,
    ):
        require_chat_template(tokenizer)
        self.models, self.tokenizer = [model.eval() for model in models], tokenizer
        self.centres, self.spread, self.batch_size, self.max_length = list(centres), spread, batch_size, max_length
        self.most = min(filter(None, map(most_positions, self.models)), default=None)
        self.writer, _ = training_tokenizer(tokenizer)
        turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        [row] = encode_conversations(self.writer, [turns])
        last = max(place for place, label in enumerate(row["labels"]) if label != -100)
        # What ends an answer, and what the template writes after it.
        self.end, self.tail = row["input_ids"][last], row["input_ids"][last + 1 :]

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device: str | torch.device | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> RewardModel:
        """Load what `recipes/reward.py` saved, or any model with one output; `options` are `from_pretrained`'s.

        Raises:
            ModelError: nothing to load, no tokenizer or chat template with it, or a model with several outputs.
        """
        file = Path(name_or_path, ENSEMBLE)
        kept: dict[str, Any] = {"members": [""], "centres": [0.0], "spread": 0.0}
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
        names = [str(Path(name_or_path, member)) if member else name_or_path for member in kept["members"]]
        path, how = resolve(names[0])
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **how, **options)
        except Exception as error:  # a damaged file fails in every way that Python can
            raise ModelError(f"No tokenizer could be loaded from {names[0]}: {first_line(error)}") from error
        models = [_load(name, tokenizer, dtype, options).to(device) for name in names]
        return cls(models, tokenizer, kept["centres"], kept["spread"], batch_size, max_length)

    def score(
        self, prompts: Sequence[str | list[Message]], completions: Sequence[str], tools: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """The rewards of completions `(n,)`, each as the answer to its prompt: a text, or the turns before, with the
        tools that it may call."""
        turns = [
            [*([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), _answer(completion)]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        rows = encode_conversations(
            self.writer, turns, eos_required=False, given=[{"tools": each} for each in tools or [None] * len(turns)]
        )
        return self._rewards([row["input_ids"] for row in rows])

    def score_ids(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The rewards of sequences `(n, time)` in this model's tokens, padded on either side: `(n,)`. Those that stop
        at the end token, as generated ones do, get what the chat template writes after it."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [ids[here.bool()].tolist() for ids, here in zip(input_ids.cpu(), mask.cpu(), strict=True)]
        return self._rewards([row + self.tail if row[-1:] == [self.end] else row for row in rows])

    @torch.no_grad()
    def _rewards(self, sequences: list[list[int]]) -> torch.Tensor:
        sequences = [ids[: self.max_length] for ids in sequences]
        if (longest := max(map(len, sequences), default=0)) > (self.most or longest):
            raise ModelError(
                f"The reward model {self.models[0].config._name_or_path} reads {self.most:,} tokens; a conversation "
                f"has {longest:,}. Leave out long prompts (--max_prompt_length), or take another."
            )
        found = torch.empty(len(self.models), len(sequences))
        for rows in alike([len(ids) for ids in sequences], self.batch_size, self.models[0].device):
            lengths = torch.tensor([len(sequences[row]) for row in rows])
            mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            for number, (model, centre) in enumerate(zip(self.models, self.centres, strict=True)):
                ids = pad([sequences[row] for row in rows], model.config.get_text_config().pad_token_id)
                inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
                found[number, rows] = model(**inputs).logits.float().view(-1).cpu() - centre
        return found.mean(dim=0) - self.spread * found.std(dim=0, correction=0)


def _answer(completion: str) -> Message:
    return {"role": "assistant", "content": completion}


def _load(name: str, tokenizer: Any, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    path, _ = resolve(name)
    more: dict[str, Any] = {}
    if base := adapter_base(path):  # its head is in the adapter, and not in the base's folder
        where, how = resolve(base[0])
        config = AutoConfig.from_pretrained(where, num_labels=1, **how, **options)
        config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id
        more = {"config": config, "new": [], "ignore_mismatched_sizes": True}
    model = load_pretrained(AutoModelForSequenceClassification, name, dtype, **options, **more)
    if model.config.num_labels != 1:
        raise ModelError(f"{name} has {model.config.num_labels} outputs, and a reward model one.")
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if config.pad_token_id is None:  # any that ends no conversation: the head looks for the last that is another
        config.pad_token_id = next(
            token for token in range(config.vocab_size) if token not in tokenizer.all_special_ids
        )
    return model
