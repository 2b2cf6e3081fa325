"""One check in a process of its own: `one.py MODULE:FUNCTION WORK DEVICE SMALL RESULT.json`."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from benchmarks.gpu.setting import Setting, Skipped


def main(target: str, work: str, device: str, small: str, result: str) -> None:
    module, _, function = target.partition(":")
    try:
        finding = getattr(importlib.import_module(module), function)(Setting(Path(work), device, small == "1"))
        found = {"status": "pass", "message": finding.message, "figures": finding.figures}
    except Skipped as reason:
        found = {"status": "skip", "message": str(reason), "figures": {}}
    except Exception as error:  # whatever a check meets is its result
        traceback.print_exc()
        figures = getattr(error, "figures", {})
        text = f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error)
        found = {"status": "fail", "message": text, "figures": figures}
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
