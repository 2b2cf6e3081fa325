"""Talking to a trained model: a streaming conversation, or one answer a prompt."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
    set_seed,
)

import tuner.model  # noqa: F401  (registers our classes with the Auto classes)
from tuner.errors import ArgumentError, ModelError
from tuner.hardware import device_type, has_fast_bf16
from tuner.loading.checkpoints import load_causal_lm, resolve
from tuner.text.chat import Message, generation_prompt
from tuner.text.load_tokenizer import load_pretrained_tokenizer

HELP = "Type to talk. /reset forgets the conversation, /quit (or Ctrl-D) leaves."


@dataclass
class ChatModel:
    """A model, its tokenizer, and how it samples."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: dict[str, Any]

    def generate(self, inputs: dict[str, torch.Tensor], stream: bool) -> str:
        """Continue `input_ids` `(1, time)`; with `stream`, print the words as they come."""
        inputs = {k: v.to(self.model.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        room = self.model.config.get_text_config().max_position_embeddings - inputs["input_ids"].shape[1]
        if room < 1:
            raise ArgumentError(
                f"The prompt is {inputs['input_ids'].shape[1]} tokens, as long as the model can read at all."
            )
        sampling = {**self.sampling, "max_new_tokens": min(self.sampling["max_new_tokens"], room)}
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        with torch.inference_mode():
            output = self.model.generate(**inputs, **sampling, streamer=streamer)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def load_chat_model(name_or_path: str, args: argparse.Namespace) -> ChatModel:
    """Load a model to talk to.

    Raises:
        ModelError: no model or no tokenizer there.
        ArgumentError: a sampling value that makes no sense.
    """
    if args.temperature < 0 or not 0 < args.top_p <= 1 or args.top_k < 0:
        raise ArgumentError("--temperature and --top_k must not be negative, and --top_p must lie in (0, 1].")
    path, how = resolve(name_or_path)
    tokenizer = load_pretrained_tokenizer(path, "chatml" if how else None, **how)
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    model = load_causal_lm(name_or_path, dtype)
    if args.seed is not None:
        set_seed(args.seed)
    greedy = args.temperature == 0
    chosen = {} if greedy else {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_new_tokens": args.max_new_tokens,
    }
    return ChatModel(model.to(device_type()).eval(), tokenizer, {**ends, **chosen, "do_sample": not greedy})


def chat(model: ChatModel, system: str | None) -> None:
    """A conversation on the terminal until /quit or the end of input."""
    _require_template(model)
    console = Console(highlight=False)
    console.print(HELP, style="dim")
    beginning: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    while True:
        try:
            said = console.input("[bold green]you[/]  " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if said in ("/quit", "/exit"):
            return
        if said == "/reset":
            messages = list(beginning)
            console.print("The conversation is forgotten.", style="dim")
        elif said.startswith("/"):
            console.print(f"There is no {said.split()[0]}. {HELP}", style="dim")
        elif said:
            messages.append({"role": "user", "content": said})
            console.print("[bold cyan]model[/] ", end="")
            try:
                answer = model.generate(_fitting(model, messages, len(beginning)), stream=True)
            except KeyboardInterrupt:  # enough of this answer, not of the conversation
                console.print()
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})


def complete(model: ChatModel, prompts: list[str], system: str | None, raw: bool) -> None:
    """Answer each prompt (or each line of standard input), one after the other, on standard output."""
    if not raw:
        _require_template(model)
    for prompt in prompts or (line.rstrip("\n") for line in sys.stdin if line.strip()):
        if raw:
            bos = model.tokenizer.bos_token or ""
            inputs = model.tokenizer(bos + prompt, add_special_tokens=False, return_tensors="pt")
        else:
            turns: list[Message] = [{"role": "system", "content": system}] if system else []
            inputs = generation_prompt(model.tokenizer, [*turns, {"role": "user", "content": prompt}])
        print(model.generate(inputs, stream=False).strip(), flush=True)


def _fitting(model: ChatModel, messages: list[Message], kept: int) -> dict[str, torch.Tensor]:
    """The conversation as tokens, its oldest exchanges forgotten when there would be no room left to answer."""
    limit = model.model.config.get_text_config().max_position_embeddings - model.sampling["max_new_tokens"]
    while True:
        inputs = generation_prompt(model.tokenizer, messages)
        if inputs["input_ids"].shape[1] <= limit or len(messages) <= kept + 1:
            return inputs
        del messages[kept : kept + 2]


def _require_template(model: ChatModel) -> None:
    if not model.tokenizer.chat_template:
        raise ModelError("This model's tokenizer has no chat template. 'tuner generate --raw' continues plain text.")
