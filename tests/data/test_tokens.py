"""Raw text to tokens."""

import copy

from tests.text import samples
from tuner.data.tokens import tokenize


def test_tokens_that_are_added_are_known_at_once():
    """Also where the same text was tokenized before."""
    tokenizer = copy.deepcopy(samples.small())
    (before,) = tokenize(tokenizer, ["a zyzzyva flew"], None, None)
    tokenizer.add_tokens(["zyzzyva"])
    (after,) = tokenize(tokenizer, ["a zyzzyva flew"], None, None)
    assert tokenizer.convert_tokens_to_ids("zyzzyva") in after and len(after) < len(before)
