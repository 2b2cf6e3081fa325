"""A corpus made fit for pretraining: cleaned texts, without faulty, repeated and evaluation documents.

In order, each step seeing what the one before left: characters and, with `web`, boilerplate lines within documents;
documents that are empty or, with `web`, break a rule of Gopher's (`gopher`); exact duplicates; near-duplicates;
documents that share text with an evaluation set (`duplicates`). Of repeated documents the first stays. Every removed
document is counted, once.

`clean_text` and `fault` judge a document by itself and also serve streams. `web` is for English prose. Left out on
purpose: recognising languages, classifiers of quality, and lines that many documents share.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from tuner.corpus import duplicates, gopher
from tuner.corpus.duplicates import NearDuplicates, digest, shares_ngram, sketches, word_hashes
from tuner.data.cache_key import map_batches
from tuner.errors import DataError
from tuner.text import words

LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Controls, soft hyphen, zero-width space and its kin, bidirectional marks, invisible operators, byte order mark, halves
# of surrogate pairs. Tabs and line feeds stay.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
# Joiners have no width either, but Persian, Indic scripts and emoji are spelt with them: gone beside ASCII and blanks.
JOINERS = re.compile("(?<![^\x00-\x7f\\s])[\u200c\u200d]+|(?<![\u200c\u200d])[\u200c\u200d]++(?![^\x00-\x7f\\s])")

# Lines that pages carry beside their text. C4 (Raffel et al. 2019, https://arxiv.org/abs/1910.10683) drops every line
# with one of its words; here the line must be short and consist of little else, for people do write about cookies.
MAX_BOILERPLATE = 200  # characters
_BUTTON = r"(?:share|tweet|pin it|e-?mail|print|facebook|twitter|linkedin|reddit|pinterest|whatsapp|telegram|copy link)"
_FOOTER = (
    r"(?:(?:privacy|cookies?) (?:policy|notice|settings|preferences)|terms (?:of (?:use|service)|(?:and|&) conditions)"
    r"|contact us|about us|site ?map|advertise with us|all rights reserved)"
)
BOILERPLATE = re.compile(
    r"(?!.*\?$)(?:"  # notices do not ask, people do
    r"(?:.{0,60}\b)?(?:we|(?:this|our) (?:web)?site)\b.{0,30}\b(?:use|uses|using|set|sets|store)\b.{0,40}\bcookies\b.*"
    r"|by (?:using|continuing|clicking)\b.{0,80}\bcookies\b.*"
    r"|(?:please )?(?:accept|allow|reject|decline|manage)(?: all| our| the use of)? cookies\W*"
    r"|.{0,60}\b(?:enable|turn on|activate) javascript\b.{0,80}"
    r"|.{0,40}\bjavascript (?:is|has been|must be) (?:currently |not )?(?:disabled|enabled|required|supported)\b.{0,80}"
    r"|.{0,100}\ball rights reserved\b.{0,60}"
    r"|share (?:this|on|via)\b.{0,40}|(?:follow|like) us on\b.{0,40}"
    r"|(?:please )?(?:subscribe|sign up) (?:to|for) (?:our|the)\b.{0,30}\bnewsletters?\b.{0,40}"
    rf"|{_BUTTON}(?:\W+{_BUTTON})+\W*"
    rf"|{_FOOTER}(?:\W+{_FOOTER})*\W*)",
    re.IGNORECASE,
)
# What is noted of each document on the way.
NOTES = ("_fault", "_digest", "_sketch", "_is_shared", "_size_before", "_size", "_is_changed")
COMPARISONS = ["exact_duplicates", "near_duplicates", "contamination"]


class CleaningStep(NamedTuple):
    """A line of the report: the documents and characters (code points) there were, or less what a step removed."""

    name: str
    documents: int
    characters: int
    documents_changed: int = 0


def clean_text(text: str, web: bool) -> str:
    """Normalise a text: NFC, line feeds alone, nothing invisible, no boilerplate, no blanks at the ends of lines.

    Doing it again changes nothing. Indentation and blank lines within the text stay.
    """
    # Composed before, for composing may turn a character into ASCII; and after, for what was apart may now compose.
    text = INVISIBLE.sub("", LINE_ENDS.sub("\n", unicodedata.normalize("NFC", text)))
    if not text.isascii():
        text = unicodedata.normalize("NFC", JOINERS.sub("", text))
    lines = [line.rstrip() for line in text.split("\n")]
    if web:
        lines = [line for line in lines if len(line) > MAX_BOILERPLATE or not BOILERPLATE.fullmatch(line.lstrip())]
    return "\n".join(lines).strip("\n")


def fault(text: str, web: bool) -> str | None:
    """The name of the first rule that a cleaned document breaks, or None."""
    if not text.strip():
        return "empty"
    return gopher.broken_rule(text) if web else None


def clean_corpus(
    rows: Dataset, web: bool, held_out: np.ndarray, num_proc: int | None = None
) -> tuple[Dataset, list[CleaningStep]]:
    """Clean a corpus and remove what is faulty, repeated or in an evaluation set; see the module's header.

    Args:
        rows: documents in the column `text`. Other columns stay as they are.
        held_out: `held_out_ngrams` of evaluation documents.
        num_proc: processes; the result does not depend on it. `datasets` caches what is found out of each document.

    Returns:
        The rows that stay, in their order and with cleaned texts, and the report: what there was, `clean_text`, each
        rule that removed something, each comparison, what is left.

    Raises:
        DataError: nothing left, or datasketch missing.
    """
    code, how = [__file__, gopher.__file__, duplicates.__file__, words.__file__], {"web": web, "held_out": held_out}
    examined = map_batches(rows, _examine_batch, code, how, num_proc=num_proc, desc="Cleaning documents")
    notes = examined.select_columns(list(NOTES))[:]
    verdicts = _verdicts(notes)
    left = [row for row, verdict in enumerate(verdicts) if not verdict]
    documents, characters = Counter(verdicts), Counter[str]()
    for verdict, size in zip(verdicts, notes["_size"], strict=True):
        characters[verdict] += size
    names = [name for name, _ in Counter(filter(None, notes["_fault"])).most_common()]
    names += COMPARISONS if len(held_out) else COMPARISONS[:2]
    before, after = sum(notes["_size_before"]), sum(notes["_size"])
    steps = [CleaningStep("clean_text", 0, after - before, sum(notes["_is_changed"]))]
    steps += [CleaningStep(name, -documents[name], -characters[name]) for name in names]
    if not left:
        taken = [f"{s.name} {-s.documents:,} ({-s.characters:,} characters)" for s in steps if s.documents]
        raise DataError(
            f"Cleaning left none of the {len(rows):,} documents. Removed by {', '.join(taken)}. "
            "Use --clean light or none, or look at the corpus."
        )
    first, last = CleaningStep("before", len(rows), before), CleaningStep("after", len(left), characters[""])
    return examined.remove_columns(list(NOTES)).select(left), [first, *steps, last]


def _examine_batch(batch: dict[str, list[Any]], web: bool, held_out: np.ndarray) -> dict[str, list[Any]]:
    """What can be said of each document by itself."""
    texts = [clean_text(text, web) for text in batch["text"]]
    faults = [fault(text, web) or "" for text in texts]
    hashes = [word_hashes("" if broken else text) for text, broken in zip(texts, faults, strict=True)]
    return {
        "text": texts,
        "_fault": faults,
        "_digest": [digest(text) for text in texts],
        "_sketch": sketches(hashes),
        "_is_shared": [shares_ngram(words, held_out) for words in hashes],
        "_size_before": [len(text) for text in batch["text"]],
        "_size": [len(text) for text in texts],
        "_is_changed": [old != new for old, new in zip(batch["text"], texts, strict=True)],
    }


def _verdicts(notes: dict[str, list[Any]]) -> list[str]:
    """Of each document the step that removes it, or nothing."""
    verdicts, seen, near_duplicates = [], set(), NearDuplicates()
    for broken, same, sketch, is_shared in zip(*(notes[name] for name in NOTES[:4]), strict=True):
        if broken:
            verdicts.append(broken)
        elif same in seen:
            verdicts.append("exact_duplicates")
        elif sketch and near_duplicates.is_one(sketch):
            verdicts.append("near_duplicates")
        else:
            verdicts.append("contamination" if is_shared else "")
        if not broken:
            seen.add(same)
    return verdicts
