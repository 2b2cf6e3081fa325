"""Writes docs/compatibility.md from the lines that the checks wrote: `python -m tests.ecosystem.page FILE...`."""

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
below; **fails**: only ours does; **not run**: nothing here could run it, and why is below; an empty cell: the tool is
not for that shape. Of a library's own tests the counts are below too.

"""


def page(lines: list[dict[str, str]]) -> str:
    """The page. A check that ran several times works where all of its runs did that could be run."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    worst = ("not run", "works", "upstream", "fails")
    for line in lines:
        cells = found.setdefault((line["tool"], line["what"]), {})
        states = (cells.get(line["shape"], "not run"), line["state"])
        cells[line["shape"]] = max(states, key=worst.index)
    rows = ["| tool | what | " + " | ".join(SHAPES) + " |", "| --- " * (len(SHAPES) + 2) + "|"]
    for (tool, what), cells in sorted(found.items()):
        rows.append(f"| {tool} | {what} | " + " | ".join(cells.get(shape, "") for shape in SHAPES) + " |")
    upstream = json.loads(UPSTREAM.read_text(encoding="utf-8"))
    not_run = {f"{line['tool']} {line['what']}": line["why"] for line in lines if line["state"] == "not run"}
    counts = {f"{line['tool']} {line['what']} ({line['shape']})": line["counts"] for line in lines if "counts" in line}
    sections = (("Upstream", upstream), ("Not run", not_run), ("Counts", counts))
    return HEAD + "\n".join(rows) + "\n" + "".join(reasons(*section) for section in sections)


def reasons(heading: str, found: dict[str, str]) -> str:
    """A section that says why, for each check."""
    return (
        f"\n## {heading}\n\n" + "".join(f"- {check}: {why}\n" for check, why in sorted(found.items())) if found else ""
    )


if __name__ == "__main__":
    texts = [Path(name).read_text(encoding="utf-8") for name in sys.argv[1:]]
    PAGE.write_text(page([json.loads(line) for text in texts for line in text.splitlines()]), encoding="utf-8")
