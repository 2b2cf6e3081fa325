"""Words of texts in any script. Where a script has no spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese), each character counts as one, or a sentence would be a word."""

from __future__ import annotations

import re
from collections.abc import Iterable

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A word without punctuation.
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
# scikit-learn's, of two letters and more, with a character of those scripts beside.
TOKEN_PATTERN = f"[{UNSPACED}]|[^\\W{UNSPACED}][^\\W{UNSPACED}]+"
# What white space separates, and a character of those scripts; with the punctuation behind.
PIECE = re.compile(f"[{UNSPACED}][^\\w\\s]*|[^\\s{UNSPACED}]+")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
CHARACTER = re.compile(f"[{UNSPACED}]")
# Chinese sentences end without a space behind.
SENTENCE = re.compile("(?<=[.!?])\\s+|(?<=[\u3002\uff01\uff1f])(?![\u201d\u2019\u300d\u300f\uff09])")


def pieces(text: str) -> list[str]:
    """Words as white space separates them, their punctuation included; a character of a script without spaces by
    itself."""
    return PIECE.findall(text) if CHARACTER.search(text) else text.split()


def is_unspaced(text: str) -> bool:
    """Whether more than half of a text's words are characters of scripts without spaces."""
    return 2 * len(CHARACTER.findall(text)) > len(WORD.findall(text))


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """sacrebleu's tokenizer for texts, by the first few: `zh` where most are Chinese, `char` where they are of another
    script without spaces, else `13a`."""
    sample = "".join(text for text, _ in zip(texts, range(100), strict=False))
    if not is_unspaced(sample):
        return "13a"
    return "zh" if 2 * len(HAN.findall(sample)) > len(CHARACTER.findall(sample)) else "char"
