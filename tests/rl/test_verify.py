"""Rewards that can be checked."""

import pytest

from tuner.rl.verify import exact_answer, last_number


def test_exact_answer():
    said = ["42", " 42\n", "it is 42", [{"role": "assistant", "content": "42"}], ""]
    assert exact_answer(completions=said, answer=["42", 42, 42, 42, 42], prompts=said) == [1.0, 1.0, 0.0, 1.0, 0.0]


def test_last_number():
    said = ["6 times 7 is 42", "42 is 6 times 7", "1,042", "none", "-3.5.", "it is 3-5", "x = -5"]
    right = [42, 42, "1,042", 42, -3.5, 5, "#### -5"]
    assert last_number(completions=said, answer=right) == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    said, right = (
        [".5", "\N{MINUS SIGN}5", "1,2", "9007199254740993", "1.50", "-.25"],
        ["0.5", -5, 12, "9007199254740992", 1.5, -0.25],
    )
    assert last_number(completions=said, answer=right) == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert last_number(completions=["1e99999999999999999999"], answer=[1]) == [0.0]
    assert last_number(completions=["0.00001", "5"], answer=[1e-5, 1e-5]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="the answer 'six' names no number"):
        last_number(completions=["6"], answer=["six"])


@pytest.mark.parametrize("answer", [r"\frac{3}{4}", r"2\pi", "(3, 4)", "4 of 7"])
def test_an_answer_that_is_more_than_a_number_is_refused(answer):
    with pytest.raises(ValueError, match="names more than a number"):
        last_number(completions=["4"], answer=[answer])


def test_an_answer_with_its_reasoning():
    assert last_number(completions=["72", "8"], answer=["64 and 8 is 72.\n#### 72", r"\$8"]) == [1.0, 1.0]
    right = [r"5\text{ cm}", "10{,}000", r"1,\!000", "1,000"]
    assert last_number(completions=["5", "10000", "1000", "1,000"], answer=right) == [1.0] * 4
