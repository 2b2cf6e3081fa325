"""Writes docs/compatibility.md from the lines that the checks wrote: `python -m tests.ecosystem.page LINES`."""

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
UPSTREAM = Path(__file__).parent / "upstream.json"
SHAPES = ("decoder", "encoder", "encoder-decoder")
HEAD = """\
# Compatibility

Our three shapes in other tools, each check beside a published family of the same size (Llama, BERT, BART) in the same
run. `make test-suites` makes this page. **works**; **upstream**: the published family fails in the same way, and why is
below; **fails**: only ours does; **not run**: nothing here could run it; an empty cell: the tool is not for that shape.

"""


def page(lines: list[dict[str, str]]) -> str:
    """The page. A check that ran several times works where all of its runs did."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    worst = ("works", "not run", "upstream", "fails")
    for line in lines:
        cells = found.setdefault((line["tool"], line["what"]), {})
        states = (cells.get(line["shape"], "works"), line["state"])
        cells[line["shape"]] = max(states, key=worst.index)
    rows = ["| tool | what | " + " | ".join(SHAPES) + " |", "| --- " * (len(SHAPES) + 2) + "|"]
    for (tool, what), cells in sorted(found.items()):
        rows.append(f"| {tool} | {what} | " + " | ".join(cells.get(shape, "") for shape in SHAPES) + " |")
    reasons = [f"- {check}: {reason}" for check, reason in json.loads(UPSTREAM.read_text(encoding="utf-8")).items()]
    return HEAD + "\n".join(rows) + "\n" + ("\n## Upstream\n\n" + "\n".join(reasons) + "\n" if reasons else "")


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    PAGE.write_text(page([json.loads(line) for line in text.splitlines()]), encoding="utf-8")
