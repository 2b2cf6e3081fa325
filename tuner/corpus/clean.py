"""A corpus made fit for pretraining: cleaned texts, without faulty, repeated and evaluation documents.

In order, each step seeing what the one before left: characters and boilerplate lines within documents; documents that
break a rule of Gopher's (Rae et al. 2021, https://arxiv.org/abs/2112.11446, section A.1.1); exact duplicates;
near-duplicates; documents that share text with an evaluation set. Of repeated documents the first stays. Every removed
document is counted, once.

`clean_text` and `fault` judge a document by itself and also serve streams. Comparing documents is `duplicates`' matter.
Left out on purpose: recognising languages, classifiers of quality, and lines that many documents share.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from datasets import Dataset

from tuner.corpus import duplicates
from tuner.corpus import gopher as quality
from tuner.corpus.gopher import GopherThresholds, quality_faults, repetition_faults
from tuner.data.cache_key import map_batches
from tuner.errors import ArgumentError, DataError

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
# One of these is in every such line. Looking for them first spares most documents the expression above.
HINTS = (
    *("cookie", "javascript", "reserved", "newsletter", "us on", "share", "tweet", "pin it", "mail", "print"),
    *("facebook", "twitter", "linkedin", "reddit", "pinterest", "whatsapp", "telegram", "copy link"),
    *("privacy", "terms", "contact us", "about us", "sitemap", "site map", "advertise"),
)

# What `clean_corpus` notes of each row on the way.
FAULT, DIGEST, BEFORE, AFTER, CHANGED = "_fault", "_digest", "_characters_before", "_characters_after", "_changed"
NOTES = [FAULT, DIGEST, BEFORE, AFTER, CHANGED]


@dataclass(frozen=True)
class CleaningOptions:
    """What is cleaned and what is removed. As it stands, for English prose from the web.

    For conversations lower `min_words` and switch `quality` off; for code also `boilerplate` and `repetition`. A number
    out of its range is an ArgumentError.
    """

    boilerplate: bool = True  # remove lines about cookies and JavaScript, share buttons and footers
    min_words: int = 50  # Gopher's, as all that `thresholds` holds
    max_words: int = 100_000
    quality: bool = True  # the rules of section A.1.1 on words, symbols and lines
    repetition: bool = True  # the rules of table A1
    thresholds: GopherThresholds = field(default_factory=GopherThresholds)
    exact_duplicates: bool = True
    near_duplicates: bool = True
    similarity: float = 0.8  # Lee et al. 2021, as the n-grams of 5 words
    shingle_words: int = 5
    permutations: int = 128  # datasketch's; a pair of similarity 0.85 is found in 19 cases of 20
    contamination_words: int = 13  # Brown et al. 2020
    # An n-gram of the evaluation set in more documents than this is common property. They used 10; None counts all.
    contamination_max_documents: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ArgumentError(f"similarity is {self.similarity}; expected a share above 0 and at most 1, like 0.8.")
        least = {"shingle_words": 1, "permutations": 16, "contamination_words": 1, "max_words": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected {smallest} or more.")


@dataclass(frozen=True)
class CleaningStep:
    """What one step did; sizes in characters (code points)."""

    name: str
    documents_removed: int = 0
    characters_removed: int = 0
    documents_changed: int = 0


@dataclass(frozen=True)
class CleaningReport:
    """What cleaning made of a corpus. `documents` and `characters` are those before it.

    `steps` are in order: `clean_text`, then by its name each rule that removed something, then each comparison.
    """

    documents: int
    characters: int
    steps: list[CleaningStep]

    @property
    def documents_left(self) -> int:
        return self.documents - sum(step.documents_removed for step in self.steps)

    @property
    def characters_left(self) -> int:
        return self.characters - sum(step.characters_removed for step in self.steps)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """For a table: step, documents removed, characters removed, documents changed; first and last the totals."""
        steps = [(s.name, -s.documents_removed, -s.characters_removed, s.documents_changed) for s in self.steps]
        before, after = (self.documents, self.characters), (self.documents_left, self.characters_left)
        lines = [("before", *before, 0), *steps, ("after", *after, 0)]
        return [(name, f"{documents:,}", f"{size:,}", f"{changed:,}") for name, documents, size, changed in lines]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "documents_left": self.documents_left, "characters_left": self.characters_left}


def clean_text(text: str, options: CleaningOptions) -> str:
    """Normalise a text: NFC, line feeds alone, nothing invisible, no boilerplate, no blanks at the ends of lines.

    Doing it again changes nothing. Indentation and blank lines within the text stay.
    """
    # Composed before, for composing may turn a character into ASCII; and after, for what was apart may now compose.
    text = INVISIBLE.sub("", LINE_ENDS.sub("\n", unicodedata.normalize("NFC", text)))
    if not text.isascii():
        text = unicodedata.normalize("NFC", JOINERS.sub("", text))
    lines = [line.rstrip() for line in text.split("\n")]
    if options.boilerplate:
        lowered = text.lower()
        if any(hint in lowered for hint in HINTS):
            lines = [line for line in lines if len(line) > MAX_BOILERPLATE or not BOILERPLATE.fullmatch(line.lstrip())]
    return "\n".join(lines).strip("\n")


def fault(text: str, options: CleaningOptions) -> str | None:
    """The name of the first rule that a cleaned document breaks, or None."""
    return next(faults(text, options), None)


def faults(text: str, options: CleaningOptions) -> Iterator[str]:
    """The names of all rules that a cleaned document breaks, in order, each found when it is asked for."""
    words = text.split()
    if not words:
        yield "empty"  # all other rules speak of shares of something
        return
    if len(words) < options.min_words:
        yield "too_few_words"
    if len(words) > options.max_words:
        yield "too_many_words"
    if options.quality:
        yield from quality_faults(text, words, options.thresholds)
    if options.repetition:
        yield from repetition_faults(text, words, options.thresholds)


def clean_corpus(
    rows: Dataset, options: CleaningOptions, held_out: Dataset | None = None, num_proc: int | None = None
) -> tuple[Dataset, CleaningReport]:
    """Clean a corpus and remove what is faulty, repeated or in an evaluation set; see the module's header.

    Args:
        rows: documents in the column `text`; a missing text counts as an empty one. Other columns stay as they are.
        held_out: evaluation documents, also in `text`. They are cleaned for the comparison alone.
        num_proc: processes; the result does not depend on it. `datasets` caches every pass over a data set of files.

    Returns:
        The rows that stay, in their order and with cleaned texts, and the account.

    Raises:
        DataError: no column `text`, nothing left, held-out documents too short to be found, or datasketch missing.
    """
    _require_text(rows, "The corpus")
    ngrams = None
    if held_out is not None:
        _require_text(held_out, "The held-out set")
        texts = (clean_text(text or "", options) for text in held_out["text"])
        ngrams = duplicates.held_out_ngrams(texts, options.contamination_words)
    if options.near_duplicates:
        duplicates.require_datasketch()
    how = {"num_proc": num_proc, "desc": "Cleaning documents"}
    examined = map_batches(rows, _examine_batch, [__file__, quality.__file__], {"options": options}, **how)
    notes, cleaned = examined.select_columns(NOTES)[:], examined.remove_columns(NOTES)
    verdicts = list(notes[FAULT])  # of each document the step that removes it, empty while it stays
    names = [name for name, _ in Counter(filter(None, verdicts)).most_common()]
    if options.exact_duplicates:
        names.append("exact_duplicates")
        _remove(verdicts, names[-1], duplicates.repeated([notes[DIGEST][row] for row in _left(verdicts)]))
    if _left(verdicts) and (options.near_duplicates or ngrams is not None):
        permutations = options.permutations if options.near_duplicates else 0
        left, n = cleaned.select(_left(verdicts)), options.contamination_words
        sketches = duplicates.sketch(left, permutations, options.shingle_words, ngrams, n, num_proc)
        alike = [False] * len(sketches)
        if options.near_duplicates:
            names.append("near_duplicates")
            alike = duplicates.find_near_duplicates(sketches, options.similarity, permutations)
            _remove(verdicts, names[-1], alike)
        if ngrams is not None:
            names.append("contamination")
            shared = [found for found, gone in zip(sketches["shared"], alike, strict=True) if not gone]
            _remove(verdicts, names[-1], duplicates.contaminated(shared, options.contamination_max_documents))
    report = _account(notes, verdicts, names)
    if report.documents_left == 0:
        raise DataError(_nothing_left(report))
    return cleaned.select(_left(verdicts)), report


def _require_text(rows: Dataset, name: str) -> None:
    if getattr(rows.features.get("text"), "dtype", None) not in ("string", "large_string", "null"):
        raise DataError(f"{name} has no column 'text' of strings; its columns are {dict(rows.features)}.")
    if len(rows) == 0:
        raise DataError(f"{name} has no rows.")


def _examine_batch(batch: dict[str, list[Any]], options: CleaningOptions) -> dict[str, list[Any]]:
    """What can be said of each document by itself."""
    before = [text or "" for text in batch["text"]]
    after = [clean_text(text, options) for text in before]
    return {
        "text": after,
        FAULT: [fault(text, options) or "" for text in after],
        DIGEST: [duplicates.digest(text) for text in after],
        BEFORE: [len(text) for text in before],
        AFTER: [len(text) for text in after],
        CHANGED: [old != new for old, new in zip(before, after, strict=True)],
    }


def _left(verdicts: list[str]) -> list[int]:
    return [row for row, verdict in enumerate(verdicts) if not verdict]


def _remove(verdicts: list[str], name: str, gone: list[bool]) -> None:
    for row, is_gone in zip(_left(verdicts), gone, strict=True):
        if is_gone:
            verdicts[row] = name


def _account(notes: dict[str, list[Any]], verdicts: list[str], names: list[str]) -> CleaningReport:
    documents, characters = Counter(verdicts), Counter[str]()
    for verdict, size in zip(verdicts, notes[AFTER], strict=True):
        characters[verdict] += size
    before = sum(notes[BEFORE])
    steps = [CleaningStep("clean_text", 0, before - sum(notes[AFTER]), sum(notes[CHANGED]))]
    steps += [CleaningStep(name, documents[name], characters[name]) for name in names]
    return CleaningReport(len(verdicts), before, steps)


def _nothing_left(report: CleaningReport) -> str:
    steps = [s for s in report.steps if s.documents_removed]
    removed = ", ".join(f"{s.name} {s.documents_removed:,} ({s.characters_removed:,} characters)" for s in steps)
    return (
        f"Cleaning left none of the {report.documents:,} documents. Removed by {removed}. "
        "Relax the option behind the step that took most, or look at the corpus."
    )
