"""The results: one JSON file and one Markdown table, written anew after every check, so that a time-out loses none."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- gpu-check: begin -->", "<!-- gpu-check: end -->"


class Ledger:
    """Entries in the order in which the checks were asked for.

    Args:
        folder: where `gpu.json`, `gpu.md` and `log.txt` go.
        about: what was measured on: card, versions, date, commit.
        docs: a Markdown file whose text between two marks is replaced by the table.
    """

    def __init__(self, folder: Path, about: dict[str, Any], docs: Path | None = None):
        self.folder, self.about, self.docs = folder, about, docs
        self.entries: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_text("", encoding="utf-8")

    def expect(self, names: list[str]) -> None:
        """List the checks to come, so that one which never ran is seen."""
        self.entries = [{"name": name, "status": "not run", "message": "", "seconds": 0.0} for name in names]
        self.write()

    def record(self, name: str, status: str, message: str, seconds: float, log: str, figures: dict[str, Any]) -> None:
        """Put down a check's result, and the end of its log."""
        with self._lock:
            entry = next(entry for entry in self.entries if entry["name"] == name)
            entry |= {"status": status, "message": message, "seconds": round(seconds, 1), "figures": figures}
            with (self.folder / "log.txt").open("a", encoding="utf-8") as stream:
                stream.write(f"\n===== {name}: {status}\n{log[-20_000:]}\n")
            self.write()
        print(f"{status:8s}{seconds:6.1f} s  {name}: {message}", flush=True)

    @property
    def failed(self) -> list[str]:
        return [entry["name"] for entry in self.entries if entry["status"] in ("fail", "timeout")]

    def write(self) -> None:
        """Both files whole: written aside, then renamed."""
        result = {"about": self.about, "checks": self.entries}
        _replace(self.folder / "gpu.json", json.dumps(result, indent=1) + "\n")
        table = self.markdown()
        _replace(self.folder / "gpu.md", table)
        if self.docs is not None:
            before, _, rest = self.docs.read_text(encoding="utf-8").partition(BEGIN)
            _, _, after = rest.partition(END)
            _replace(self.docs, f"{before}{BEGIN}\n{table}{END}{after}")

    def markdown(self) -> str:
        """What was measured on, and a row for each check."""
        lines = [", ".join(f"{name} {value}" for name, value in self.about.items()), ""]
        lines += ["| check | result | seconds | found |", "|---|---|---|---|"]
        for entry in self.entries:
            cells = (entry["name"], entry["status"], f"{entry['seconds']:.0f}", entry["message"])
            lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
        for entry in self.entries:
            for title, rows in entry.get("figures", {}).get("tables", {}).items():
                lines += ["", f"**{title}**", "", *_table(rows)]
        return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of like keys as Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return head + [f"| {' | '.join(str(row.get(name, '')).replace('|', '/') for name in names)} |" for row in rows]


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
