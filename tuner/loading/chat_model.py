"""A trained model to talk to: with its tokenizer, and how it samples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, set_seed

import tuner.model  # noqa: F401  (registers our classes with the Auto classes)
from tuner.errors import ArgumentError, ModelError
from tuner.hardware import device_type, has_fast_bf16, many_shapes
from tuner.loading.checkpoints import load_pretrained, resolve, set_ends, with_adapter, writer_class
from tuner.loading.generation import room, sampling
from tuner.text.chat import Given, Message, generation_prompt
from tuner.text.load_tokenizer import load_pretrained_tokenizer
from tuner.text.pairs import encode_texts

Inputs = dict[str, torch.Tensor]


@dataclass
class ChatModel:
    """A model, its tokenizer, and how it samples. Inputs are `input_ids` and `attention_mask`, `(1, time)`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: dict[str, Any]

    @property
    def is_pair(self) -> bool:
        """Whether it is an encoder-decoder, which rewrites a text and has no conversations."""
        return bool(self.model.config.is_encoder_decoder)

    def require_template(self) -> None:
        """Refuse a model that holds no conversations with a `ModelError`."""
        if self.is_pair:
            raise ModelError("An encoder-decoder rewrites texts: 'tuner generate' asks it, there is nothing to chat.")
        if not self.tokenizer.chat_template:
            reason = "This model's tokenizer has no chat template."
            raise ModelError(f"{reason} 'tuner generate --raw' continues plain text.")

    def text(self, text: str) -> Inputs:
        """A text to continue, after the beginning token; for an encoder-decoder, to rewrite."""
        if self.is_pair:
            # Where transformers' pipelines look for it too, and a run with --source_prefix leaves it.
            [ids], _ = encode_texts(self.tokenizer, [(getattr(self.model.config, "prefix", None) or "") + text])
            return {"input_ids": torch.tensor([ids], dtype=torch.long)}
        begun = (self.tokenizer.bos_token or "") + text
        return self.tokenizer(begun, add_special_tokens=False, return_tensors="pt")

    def prompt(self, messages: Sequence[Message], given: Given = None) -> Inputs:
        """A conversation to answer, and what the template is given beside it."""
        return generation_prompt(self.tokenizer, messages, given)

    def fitting(self, messages: list[Message], kept: int) -> Inputs:
        """As `prompt`; the oldest exchanges after the first `kept` messages are deleted from `messages` where there
        would be no room left to answer."""
        while True:
            inputs = self.prompt(messages)
            left = room(self.model, inputs["input_ids"].shape[1])
            if left >= self.sampling["max_new_tokens"] or len(messages) <= kept + 1:
                return inputs
            del messages[kept : kept + 2]

    @many_shapes()
    def generate(self, inputs: Inputs, stream: bool) -> str:
        """Continue or rewrite `inputs`; with `stream`, print the words as they come.

        Raises:
            ArgumentError: a prompt without tokens, or as long as the model can read at all.
        """
        inputs = {k: v.to(self.model.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        read = inputs["input_ids"].shape[1]
        left = room(self.model, read)
        if not read:
            raise ArgumentError("The prompt is empty, and the model has no token to begin a text with.")
        if left < 1:
            raise ArgumentError(f"The prompt is {read} tokens, as long as the model can read at all.")
        how = {**self.sampling, "max_new_tokens": min(self.sampling["max_new_tokens"], left)}
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        output = self.model.generate(**inputs, **how, streamer=streamer)
        return self.tokenizer.decode(output[0, 0 if self.is_pair else read :], skip_special_tokens=True)

    def switch(self, name: str) -> str:
        """Answer with another adapter from now on, or with `none`; returns what to say of it."""
        known = list(getattr(self.model, "peft_config", ()))
        if name not in (*known, "none") or not known:
            return f"There is no adapter {name!r}: {', '.join([*known, 'none']) if known else 'none was given'}."
        base: Any = self.model.base_model
        base.disable_adapter_layers() if name == "none" else base.enable_adapter_layers()
        if name != "none":
            self.model.set_adapter(name)
        return f"Adapter: {name}."


def load_chat_model(args: argparse.Namespace) -> ChatModel:
    """Load a model to talk to, by the flags of `tuner.commands.generate`; `temperature` gets a value.

    Raises:
        ModelError: no model or no tokenizer there.
        ArgumentError: `--top_p 0`, which leaves no token.
    """
    if args.top_p <= 0:
        raise ArgumentError("--top_p must be above 0.")
    path, how = resolve(args.model)
    tokenizer = load_pretrained_tokenizer(path, "chatml" if how else None, **how)
    model: Any = load_pretrained(
        writer_class(args.model), args.model, torch.bfloat16 if has_fast_bf16() else torch.float32
    )
    for folder in getattr(args, "adapter", ()):
        model = with_adapter(model, folder, Path(folder).resolve().name)
    if args.seed is not None:
        set_seed(args.seed)
    set_ends(model, tokenizer)
    if args.temperature is None:
        args.temperature = 0.0 if model.config.is_encoder_decoder else 0.7
    how = {"pad_token_id": tokenizer.pad_token_id, "max_new_tokens": args.max_new_tokens}
    how |= sampling(args.temperature, args.top_p, args.top_k)
    return ChatModel(model.to(device_type()).eval(), tokenizer, how)
