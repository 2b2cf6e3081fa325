"""Run a script as it runs where there is a card: `python -m tests.card [--waits FILE] SCRIPT FLAGS`.

FILE is JSON: how often the host waited for the card, by line.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from tests.card.install import install
from tests.card.tensor import card


def main() -> None:
    flag, *rest = sys.argv[1:]
    waits = Path(rest.pop(0)) if flag == "--waits" else None
    sys.argv = rest if waits else [flag, *rest]
    install()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if waits is not None:
            waits.write_text(json.dumps(dict(card.waits.most_common()), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
