"""Words of texts in any script. Where a script has no spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese), each character counts as one, with its marks, or a sentence would be a word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import islice

_HAN = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED = f"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uff66-\uff9f{_HAN}"
# Vowels and tones that stand at a letter.
_MARKS = "".join(c for c in map(chr, range(0x0E00, 0x3100)) if unicodedata.category(c)[0] == "M")
# A word without punctuation.
WORD = re.compile(f"[{UNSPACED}][{_MARKS}]*|[^\\W{UNSPACED}]+")
# scikit-learn's, of two letters and more, with a character of those scripts beside.
TOKEN_PATTERN = f"[{UNSPACED}][{_MARKS}]*|[^\\W{UNSPACED}][^\\W{UNSPACED}]+"
# What white space separates, and a character of those scripts; with the punctuation behind.
PIECE = re.compile(f"[{UNSPACED}][{_MARKS}]*[^\\w\\s]*|[^\\s{UNSPACED}]+")
HAN, CHARACTER = re.compile(f"[{_HAN}]"), re.compile(f"[{UNSPACED}]")
# Chinese and Japanese sentences end without a space behind; what closes a quotation belongs to the one before.
_CJK_END = (
    "(?<=[\u3002\uff01\uff1f])\\s*(?![\\s\u3002\uff01\uff1f\u2026\u201d\u2019\u300b\u300d\u300f\u3011\uff09\"')\\]])"
)
SENTENCE = re.compile(f"(?<=[.!?])\\s+|{_CJK_END}")
# The same, with what closes a quotation or a bracket in scripts with spaces, and at line ends.
SENTENCE_OR_LINE = re.compile(f"(?<=[.!?\u2026][\"'\u201d\u2019)\\]])\\s+|(?<=[.!?\u2026])\\s+|{_CJK_END}|\\n+")


def pieces(text: str) -> list[str]:
    """Words as white space separates them, their punctuation included; a character of a script without spaces by
    itself."""
    return PIECE.findall(text) if CHARACTER.search(text) else text.split()


def is_unspaced(text: str) -> bool:
    """Whether more than half of a text's words are characters of scripts without spaces."""
    return 2 * len(CHARACTER.findall(text)) > len(WORD.findall(text))


def is_chinese(text: str) -> bool:
    """Whether a text is of such characters, and four fifths of them are Chinese; Japanese has more kana."""
    return is_unspaced(text) and 5 * len(HAN.findall(text)) > 4 * len(CHARACTER.findall(text))


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """sacrebleu's tokenizer for texts, by the first hundred: `zh` for Chinese, `char` for other scripts without spaces,
    else `13a`."""
    sample = " ".join(islice(texts, 100))
    if is_chinese(sample):
        return "zh"
    return "char" if is_unspaced(sample) else "13a"
