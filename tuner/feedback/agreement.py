"""What a file of answers says in all: who answered, what was preferred, and how far people agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

from tuner.errors import from_extra
from tuner.evaluation.statistics import proportion
from tuner.feedback.store import SIDES, Store

SAID = {
    "first": "the first completion",
    "second": "the second completion",
    "tie": "tie",
    "both_bad": "both bad",
    "skip": "skipped",
}


def report(store: Store) -> list[tuple[str, str]]:
    """Names and values, in the order to read them.

    Agreement is Krippendorff's alpha for names (2011, https://repository.upenn.edu/asc_papers/43), which takes any
    number of annotators and pairs that some left out: 1 is agreement, 0 what chance gives.
    """
    answers = store.answers()
    models = store.begun.get("models") or ("", "")
    lines = [("pairs", f"{store.count():,}")]
    for name in sorted({answer.annotator for answer in answers}):
        own = Counter(answer.choice for answer in answers if answer.annotator == name)
        lines.append((f"answers of {name}", f"{own.total() - own['skip']:,}, and {own['skip']:,} skipped"))
    said = [answer for answer in answers if answer.choice != "skip"]
    for choice, count in Counter(answer.choice for answer in said).most_common():
        model = f" ({models[SIDES.index(choice)]})" if choice in SIDES and models[0] != models[1] else ""
        lines.append((f"{SAID[choice]}{model}", f"{count:,} ({count / len(said):.0%})"))
    preferred = [(answer.choice == "second") == answer.swapped for answer in said if answer.choice in SIDES]
    if preferred:
        share = proportion(sum(preferred), len(preferred))
        lines.append(("preferred what was shown as A", f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"))
    by_pair = defaultdict(list)
    for answer in said:
        by_pair[answer.pair].append((answer.annotator, answer.pair, answer.choice))
    several = [rows for rows in by_pair.values() if len(rows) > 1]
    lines.append(("pairs that several answered", f"{len(several):,}"))
    if several:
        same = [one[2] == other[2] for rows in several for one, other in combinations(rows, 2)]
        task = from_extra("nltk.metrics.agreement", "eval").AnnotationTask([row for rows in several for row in rows])
        lines.append(("two annotators say the same", f"{sum(same) / len(same):.0%}"))
        varied = len({row[2] for rows in several for row in rows}) > 1
        lines.append(("Krippendorff's alpha", f"{task.alpha():.2f}" if varied else "none: all say the same"))
    return lines
