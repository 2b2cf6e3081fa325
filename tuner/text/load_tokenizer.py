"""Tokenizers that are loaded, and the special tokens of ours.

Ours give padding, beginning and end three different tokens. When padding and end are one token, a collator that masks
padding masks the end too, and the model never learns to stop (TRL issues 1623 and 6357). Ours does not: labels are made
before padding. Others may, so a loaded tokenizer gets a padding token of its own where its vocabulary has a spare one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tuner.errors import ModelError, one_line
from tuner.text.chat_templates import TEMPLATES
from tuner.text.gguf import read_once

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# Tokens that vocabularies carry for such uses, in order of preference.
SPARE_PADDING = (PAD, "<pad>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>", "<unk>")


def load_pretrained_tokenizer(
    name_or_path: str,
    chat_template_path: str | None = None,
    needs_end: bool = True,
    eos_token: str | None = None,
    **kwargs: object,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make it fit for training: a chat template, an end token and one to pad with.

    Args:
        name_or_path: a folder or a Hub id.
        chat_template_path: `chatml`, `bert`, a Jinja file, or a folder whose tokenizer has the template.
        needs_end: refuse one without an end token; encoders need none.
        eos_token: the end token instead of its own; new where the vocabulary has no such.

    Raises:
        ModelError: no tokenizer there, no token for padding, or an unreadable template.
    """
    tokenizer = _load(name_or_path, f"No tokenizer could be loaded from {name_or_path}", **kwargs)
    if chat_template_path is not None:
        use_chat_template(tokenizer, chat_template_path)
    elif isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = _default_template(tokenizer.chat_template, f"The tokenizer of {name_or_path}")
    if eos_token:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    if tokenizer.eos_token_id is None and needs_end:
        raise ModelError(
            f"The tokenizer of {name_or_path} has no end token, so a model could never learn to stop. Pass --eos_token."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        spare = next((t for t in SPARE_PADDING if t in vocabulary and t != tokenizer.eos_token), tokenizer.eos_token)
        if spare is None:
            raise ModelError(f"The tokenizer of {name_or_path} has no token to pad with.")
        tokenizer.pad_token = spare
    tokenizer.padding_side = "right"
    return tokenizer


def use_chat_template(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Give a tokenizer the template that `--chat_template_path` names; a ModelError where none can be read."""
    tokenizer.chat_template = read_chat_template(name_or_path)
    tokenizer.chat_template_path = name_or_path  # for messages


def read_chat_template(name_or_path: str) -> str:
    """`chatml` or `bert`, or the text of a Jinja file, or the template of the tokenizer in a folder."""
    flag = f"--chat_template_path {name_or_path}"
    if name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    if Path(name_or_path).is_dir():
        template = _load(name_or_path, f"{flag} has no tokenizer").chat_template
        if not template:
            raise ModelError(f"{flag}: the tokenizer there has no chat template.")
        return _default_template(template, flag)
    try:
        return Path(name_or_path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelError(f"{flag} is neither 'chatml', 'bert', a Jinja file, nor a tokenizer folder.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{flag} cannot be read: {one_line(error)}") from error


def _default_template(template: str | dict[str, str], origin: str) -> str:
    """The chat template, of several named ones that which is called `default`."""
    if isinstance(template, str):
        return template
    if "default" not in template:
        raise ModelError(
            f"{origin} has the chat templates {', '.join(sorted(template))} and none called default. "
            "Pass the one to use as a Jinja file with --chat_template_path."
        )
    return template["default"]


def _load(name_or_path: str, failure: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    load = partial(AutoTokenizer.from_pretrained, name_or_path, **kwargs)
    try:
        if "gguf_file" in kwargs:
            return read_once(Path(name_or_path, kwargs["gguf_file"]), "tokenizer", load, AutoTokenizer.from_pretrained)
        return load()
    except Exception as error:  # a damaged file fails in every way that Python can
        raise ModelError(f"{failure}: {type(error).__name__}: {one_line(error)}") from error
