"""transformers' own tests of a model on our shapes, beside stock families of the same size."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.ecosystem import suites
from tests.processes import ROOT

TOOL = suites.check_name("transformers")
TESTS = ROOT / "tests" / "ecosystem" / "transformers_suite.py"
SUITES = [
    ("decoder", "Dense", "Llama"),
    ("decoder", "Relative", "Llama"),
    ("decoder", "Alibi", "Llama"),
    ("decoder", "Sliding", "Llama"),
    ("decoder", "Mixture", "Mixtral"),
    ("encoder", "Rotary", "Bert"),
    ("encoder", "PostNorm", "Bert"),
    ("encoder-decoder", "Pair", "Bart"),
]


@cache
def outcomes(tested: str) -> suites.Outcomes:
    """Of an entry of `transformers_suite.TESTED`; the stock families are beside several of ours."""
    with tempfile.TemporaryDirectory() as folder:
        return suites.run(TESTS, "transformers", Path(folder), TESTED=tested)


@pytest.mark.suite
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("shape", "ours", "stock"),
    [pytest.param(*suite, marks=pytest.mark.tool(TOOL, f"models and training: {suite[1]}")) for suite in SUITES],
)
def test_suite(shape, ours, stock, record_property):
    check = f"{TOOL} models and training: {ours}"
    suites.compare(check, outcomes(ours), {stock: outcomes(stock)}, record_property)


@pytest.mark.suite
@pytest.mark.long
@pytest.mark.tool(TOOL, "GenerationTesterMixin, ExportTesterMixin")
@pytest.mark.parametrize("shape", ["decoder", "encoder-decoder"])
def test_what_is_not_published(shape):
    folder, stand_ins = suites.fetch("transformers"), suites.STAND_INS["transformers"]
    assert {name: (folder / name).read_text() for name in stand_ins} == stand_ins, "they are published now: run them"
    pytest.skip("not in the source package (tests/model/test_generation.py is ours)")


@pytest.mark.slow
def test_sample_of_a_suite(tmp_path):
    """What each head does with weights that are missing, tied or of another size."""
    which = "tied or missing or mismatched or resize or save_load"
    found = suites.run(TESTS, "transformers", tmp_path, "-k", which, TESTED="Pair")
    assert found.failed == {}
    assert len(found.passed) > 10
