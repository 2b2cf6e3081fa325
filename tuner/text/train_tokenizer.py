"""Tokenizers for pretraining: three ways to learn a vocabulary, and the special tokens that each objective needs.

`bpe` merges bytes; `unigram` weighs pieces of words and has bytes for rare characters: both give any text back.
`wordpiece` gives it back without its whitespace, and loses characters that it never met. Any goes with any objective.

The `tokenizers` library trains. Two of its trainers walk through a hash table whose order differs from run to run; what
depends on that order is fixed here: the same texts give the same files. Left out: any normalizing but WordPiece's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tuner.errors import DataError, ModelError
from tuner.text.chat_templates import TUNER_TEMPLATE
from tuner.text.load_tokenizer import BOS, EOS, PAD, ROLES

Algorithm = Literal["bpe", "wordpiece", "unigram"]
# Share of the characters that a vocabulary without bytes must know: SentencePiece's `character_coverage`.
COVERAGE = 0.9995
# Longer words are unknown. Of BERT's first tokenizer; transformers' 100 is short for scripts without spaces.
LONGEST_WORD = 200
# Scripts without spaces between words, of which each character is a word to WordPiece, as Chinese ones are to BERT's:
# Thai, Lao, Tibetan, Myanmar, Khmer, kana. Else a sentence is one word, and unknown with its first rare character.
SPACELESS = "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]"
# Share of characters that no unknown token may stand for without a warning.
LEAST_COVERAGE = 0.99
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "▁"
# Stands before "0" for itself and before "1" for the character that Metaspace takes for a space. Unicode keeps this
# one out of texts, so that an escape is rare; that there is one makes every text come back.
ESCAPE = "\U0010ffff"


@dataclass(frozen=True)
class Special:
    """The special tokens of an objective: by role, for the unknown, others, and around one text and around two."""

    roles: dict[str, str]
    unknown: str
    single: str = "$A"
    pair: str = "$A $B:1"
    extra: tuple[str, ...] = ()


# Ours, so that the model can be fine-tuned on conversations.
_CHAT = Special({"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}, "<|unk|>", extra=ROLES)
# Devlin et al. 2018, https://arxiv.org/abs/1810.04805
_BERT_ROLES = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
_BERT = Special(_BERT_ROLES, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
# Raffel et al. 2019, https://arxiv.org/abs/1910.10683, with the mask of Lewis et al. 2019, arXiv 1910.13461
_T5_ROLES = {"pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
_T5 = Special(_T5_ROLES, "<unk>", "$A </s>", "$A </s> $B </s>", tuple(f"<extra_id_{n}>" for n in range(100)))
_PAIRS = Special({"pad_token": "<pad>", "eos_token": "</s>"}, "<unk>", _T5.single, _T5.pair)
OBJECTIVES = {
    **{"clm": _CHAT, "mlm": _BERT, "mlm+nsp": _BERT, "rtd": _BERT, "contrastive": _BERT, "denoise": _T5},
    "seq2seq": _PAIRS,
}


def train_tokenizer(
    texts: Iterable[str], algorithm: Algorithm, vocab_size: int, objective: str, model_max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on raw texts, with the special tokens that an objective needs.

    Byte-level BPE is of Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909), bytes as in GPT-2. WordPiece has
    BERT's marks and words, after Schuster & Nakajima 2012; the library merges what is most frequent. Unigram is of
    Kudo 2018 (https://arxiv.org/abs/1804.10959), with SentencePiece's marks.

    Args:
        texts: the corpus, which `wordpiece` and `unigram` hold in memory: they read it twice.
        vocab_size: tokens in all, special ones included. Few texts give fewer.
        objective: one of `OBJECTIVES`.

    Raises:
        ModelError: a vocabulary too small for alphabet and special tokens.
        DataError: texts that say nothing.
    """
    special = OBJECTIVES[objective]
    roles = special.roles if algorithm == "bpe" else {**special.roles, "unk_token": special.unknown}
    marks = [*roles.values(), *special.extra]
    if algorithm == "bpe":
        tokenizer = _train_bpe(texts, vocab_size, marks)
    else:
        train = _train_wordpiece if algorithm == "wordpiece" else _train_unigram
        tokenizer = train(list(texts), vocab_size, marks, special.unknown)
    around = [(mark, tokenizer.token_to_id(mark)) for mark in marks if mark in special.pair]
    tokenizer.post_processor = processors.TemplateProcessing(special.single, special.pair, around)
    inputs = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if special is _BERT else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **roles,
        **inputs,
        extra_special_tokens=list(special.extra),
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        padding_side="right",
    )
    fast.chat_template = TUNER_TEMPLATE if special is _CHAT else None
    return fast


def measure(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, float]:
    """How well a tokenizer fits texts; special tokens are not added.

    Returns:
        `bytes_per_token`: bytes in UTF-8; `coverage`: the share of characters that no unknown token stands for.
    """
    texts = list(texts)
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    tokens, unknown, lost = sum(map(len, encoded["input_ids"])), tokenizer.unk_token_id, 0
    for encoding in encoded.encodings or ():
        if unknown in encoding.ids:
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            lost += sum(end - start for token, (start, end) in spans if token == unknown)
    size, characters = sum(len(text.encode()) for text in texts), sum(map(len, texts))
    return {"bytes_per_token": size / max(tokens, 1), "coverage": 1 - lost / max(characters, 1)}


def coverage_warning(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> str | None:
    """What to say before a run whose tokenizer does not know the texts (the first 1,000 are looked at), or None."""
    sample = [] if tokenizer.unk_token_id is None else list(islice(texts, 1000))
    coverage = measure(tokenizer, sample)["coverage"] if sample else 1.0
    if coverage >= LEAST_COVERAGE:
        return None
    return (
        f"The tokenizer does not know {1 - coverage:.0%} of the characters of the validation texts: the model will see "
        f"{tokenizer.unk_token} in their place. Use a tokenizer of bytes (bpe, unigram) or one made for these texts."
    )


def _train_bpe(texts: Iterable[str], size: int, marks: list[str]) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _require(size, len(marks) + len(alphabet), "the bytes and special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_not_blank(texts), trainer)
    return tokenizer


def _train_wordpiece(texts: Iterable[str], size: int, marks: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    # BERT's puts spaces around Chinese characters. NFC: an accent is the same however it was typed.
    normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizer])
    spaceless = pre_tokenizers.Split(Regex(SPACELESS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaceless, pre_tokenizers.BertPreTokenizer()])
    tokenizer.decoder = decoders.WordPiece(cleanup=False)  # what is shown is what the model wrote

    def goes_on(character: str) -> bool:  # punctuation and characters of scripts without spaces are words
        return len(tokenizer.pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(f"a{character}"))) == 1

    counts = Counter(chain.from_iterable("".join(tokenizer.normalizer.normalize_str(t).split()) for t in texts))
    alphabet = _alphabet(counts, lambda character: 1 + goes_on(character), size, len(marks), COVERAGE)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        # Left to itself the trainer numbers the "##" characters in the order of its table, and ties go by number.
        special_tokens=[*marks, *alphabet, *(f"##{character}" for character in alphabet if goes_on(character))],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    # The alphabet is special to the one that learns.
    learner = Tokenizer.from_str(tokenizer.to_str())
    learner.train_from_iterator(_not_blank(texts), trainer)
    tokenizer.model = models.WordPiece(learner.get_vocab(), unk_token=unknown, max_input_chars_per_word=LONGEST_WORD)
    return tokenizer


def _train_unigram(texts: Iterable[str], size: int, marks: list[str], unknown: str) -> Tokenizer:
    # With these a text that spells a byte's token is cheaper in letters, which is what it is.
    letters = sorted({SPACE, *"".join(BYTES)})
    taken = len(marks) + len(BYTES)
    _require(size, taken + len(letters) + 1, "the bytes, the letters that name them, one piece and the special tokens")
    tokenizer = Tokenizer(models.Unigram())
    escape = [normalizers.Replace(ESCAPE, ESCAPE + "0"), normalizers.Replace(SPACE, ESCAPE + "1")]
    unescape = [decoders.Replace(ESCAPE + "1", SPACE), decoders.Replace(ESCAPE + "0", ESCAPE)]
    spaces = decoders.Metaspace(SPACE, prepend_scheme="never")
    tokenizer.normalizer = normalizers.Sequence(escape)
    # Nothing else splits a word: the trainer learns a word only if it meets it with different characters behind.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), *unescape])
    counts = Counter(chain.from_iterable(map(tokenizer.normalizer.normalize_str, texts)))
    counts[SPACE] += counts.pop(" ", 0)
    alphabet = {*letters, *_alphabet(counts, lambda character: 1, size, taken + len(letters), 0)}
    rare = counts.keys() - alphabet
    # It keeps every character that it meets; the rare ones then go, and are spelled in bytes.
    room = size - taken + len(rare)
    trainer = trainers.UnigramTrainer(vocab_size=room, initial_alphabet=letters, show_progress=False)
    # It has its own use for these two, and fails on texts that hold them.
    tokenizer.train_from_iterator(_not_blank(re.sub("\0|<UNK>", " ", text) for text in texts), trainer)
    learned = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    known = {*rare, *marks, *BYTES}
    scores = {piece: score for piece, score in learned.items() if piece not in known}
    lowest = round(min(scores.values()), 4)
    # Characters that no segmentation used are given scores 0.0001 apart from the lowest up, in the order of a table.
    # The digits that are rounded off are sums of floats, in that order too.
    unused = lowest + 1e-4 * (len(counts) + len(letters))
    scores = {p: lowest if len(p) == 1 and score < unused else round(score, 4) for p, score in scores.items()}
    pieces = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    spelled = round(7 * lowest - 1)  # less than its six letters
    vocabulary = [*((mark, 0.0) for mark in marks), *((byte, spelled) for byte in BYTES), *pieces]
    tokenizer.model = models.Unigram(vocabulary, unk_id=marks.index(unknown), byte_fallback=True)
    return tokenizer


def _alphabet(counts: Counter[str], cost: Callable[[str], int], size: int, taken: int, share: float) -> list[str]:
    """The most frequent characters: `share` of all that is written, and more while half the room is left for pieces.

    A character takes `cost` tokens; `taken` of the `size` tokens are for others.
    """
    needed = share * counts.total()
    alphabet, used, seen = [], 0, 0
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        if seen >= needed and used + cost(character) > (size - taken) // 2:
            break
        alphabet.append(character)
        used += cost(character)
        seen += counts[character]
    _require(size, taken + used, "the characters of the texts and the special tokens")
    return alphabet


def _require(size: int, least: int, what: str) -> None:
    if size < least:
        raise ModelError(f"--vocab_size {size} is too small: {what} alone are {least}.")


def _not_blank(texts: Iterable[str]) -> Iterator[str]:
    blank = True
    for text in texts:
        blank = blank and not text.strip()
        yield text
    if blank:
        raise DataError("There is no text to train a tokenizer on: not one character but spaces.")
