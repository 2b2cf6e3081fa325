"""Tokenizers: train a byte-level BPE on a corpus, or load one.

Ours gives padding, beginning and end three different tokens. When padding and end are one token, a collator that masks
padding masks the end too, and the model never learns to stop (TRL issues 1623 and 6357); a loaded tokenizer with that
fault is given a padding token of its own where its vocabulary has a spare one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tuner.errors import ModelError
from tuner.text.chat import CHATML_TEMPLATE, TUNER_TEMPLATE

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# Tokens that vocabularies carry for such uses, in order of preference.
SPARE_PADDING = (PAD, "<pad>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>", "<unk>")


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; bytes as in GPT-2).

    Every byte is a token, so no text is ever unknown. The three special tokens, the three role marks and our chat
    template are set.

    Args:
        texts: the corpus, consumed once.
        vocab_size: tokens in all, special ones and the 256 bytes included.

    Raises:
        ModelError: a vocabulary too small for the bytes and the special tokens.
    """
    special = [PAD, BOS, EOS, *ROLES]
    smallest = len(special) + len(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < smallest:
        raise ModelError(f"--vocab_size {vocab_size} is too small: the bytes and special tokens alone are {smallest}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_in_batches(texts), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        padding_side="right",
    )
    fast.chat_template = TUNER_TEMPLATE
    return fast


def load_pretrained_tokenizer(
    name_or_path: str, chat_template_path: str | None = None, needs_end: bool = True, **kwargs: object
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make it fit for training: a chat template, and padding that is not the end token.

    Args:
        name_or_path: a folder or a Hub id.
        chat_template_path: `chatml`, a Jinja file, or a folder whose tokenizer has the template.
        needs_end: refuse one without an end token; encoders need none.

    Raises:
        ModelError: no tokenizer there, no spare token for padding, or an unreadable template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    except Exception as error:  # a damaged file fails in every way that Python can
        raise ModelError(f"No tokenizer could be loaded from {name_or_path}: {_one_line(error)}") from error
    if chat_template_path is not None:
        use_chat_template(tokenizer, chat_template_path)
    if tokenizer.eos_token_id is None and needs_end:
        raise ModelError(f"The tokenizer of {name_or_path} has no end token, so a model could never learn to stop.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        spare = next((t for t in SPARE_PADDING if t in vocabulary and t != tokenizer.eos_token), None)
        if spare is None:
            raise ModelError(
                f"The tokenizer of {name_or_path} can pad only with its end token {tokenizer.eos_token!r}, which would "
                f"hide the end from the loss: its vocabulary has none of {', '.join(SPARE_PADDING)} to pad with. "
                "Add a padding token to the tokenizer and resize the model's embeddings."
            )
        tokenizer.pad_token = spare
    tokenizer.padding_side = "right"
    return tokenizer


def use_chat_template(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Give a tokenizer the template that `--chat_template_path` names.

    Raises:
        ModelError: nothing there, or nothing that can be read.
    """
    tokenizer.chat_template = read_chat_template(name_or_path)
    tokenizer.chat_template_path = name_or_path  # for messages


def read_chat_template(name_or_path: str) -> str:
    """`chatml`, or the text of a Jinja file, or the template of the tokenizer in a folder."""
    if name_or_path == "chatml":
        return CHATML_TEMPLATE
    path = Path(name_or_path)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"--chat_template_path {name_or_path} cannot be read: {_one_line(error)}") from error
    if path.is_dir():
        try:
            template = AutoTokenizer.from_pretrained(name_or_path).chat_template
        except Exception as error:  # as in `load_pretrained_tokenizer`
            raise ModelError(f"--chat_template_path {name_or_path} has no tokenizer: {_one_line(error)}") from error
        if not template:
            raise ModelError(f"--chat_template_path {name_or_path}: the tokenizer there has no chat template.")
        return template
    raise ModelError(f"--chat_template_path {name_or_path} is neither 'chatml', a Jinja file, nor a tokenizer folder.")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _in_batches(texts: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
