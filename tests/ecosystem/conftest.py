"""Writes down what each check of a tool found, for docs/compatibility.md (see `page`).

A check is a test with `@pytest.mark.tool("TRL 1.12", "SFTTrainer")` and a parameter `shape`: `decoder`, `encoder`,
`encoder-decoder`, or `control`, a published family of the same size in the same tool; or with a parameter `family`
(see `families`). Where the control fails too, it is the tool's fault: the reason is a line of `upstream.json`, and the
test is expected to fail. Where a check cannot be run, it is skipped with the reason. What it records by
`record_property` (`state`, `counts`) goes into its line.
"""

import json
import os
from pathlib import Path

import pytest

from tests.model.conftest import one_thread  # noqa: F401  (of each test here too)

SHAPES = {
    **dict.fromkeys(("tuner decoder", "tuner experts"), "decoder"),
    **{"tuner encoder": "encoder", "tuner seq2seq": "encoder-decoder"},
}
UPSTREAM = json.loads((Path(__file__).parent / "upstream.json").read_text(encoding="utf-8"))


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("tool"):
            reason = UPSTREAM.get(" ".join(mark.args))
            if reason:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    marks, file = list(item.iter_markers("tool")), os.environ.get("COMPATIBILITY")
    if not marks or not file or (report.when != "call" and report.passed):
        return
    state = (
        "works"
        if report.passed
        else "upstream"
        if hasattr(report, "wasxfail")
        else "not run"
        if report.skipped
        else "fails"
    )
    parameters = item.callspec.params
    shape = parameters.get("shape") or SHAPES.get(parameters["family"], "control")
    tool, what = marks[0].args
    line = {"tool": tool, "what": what, "shape": shape, "state": state, **dict(item.user_properties)}
    if state == "not run":
        line["why"] = report.longrepr[2].removeprefix("Skipped: ")
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
