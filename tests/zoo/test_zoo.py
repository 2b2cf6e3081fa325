"""docs/models.md says what becomes of each causal family of transformers."""

import pytest

from tests.zoo.zoo import FAMILIES, PAGE, quietly

# One of each kind that was stopped by what is not its affair: an estimate of operations (no attention, projections
# without a weight), a configuration without an end token, attention by blocks (a mask that the family looks into, the
# memory of what attention gives), a linear layer of its own.
STOPPED = ("mamba", "moshi", "cpmant", "doge", "jetmoe", "falcon")


@pytest.mark.slow
@pytest.mark.parametrize("family", STOPPED)
def test_families_with_something_of_their_own(family):
    found = quietly(family)
    assert (found.outcome, found.adapter) == ("trained", "yes")


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_or_refused_as_the_page_says(family):
    assert quietly(family).line() in PAGE.read_text(encoding="utf-8").splitlines()
