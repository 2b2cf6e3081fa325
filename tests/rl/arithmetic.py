"""A reward that can be verified: whether a completion says the sum that its row asks for."""


def is_right(completions, answer, **_):
    """1 for the right number, else 0."""
    said = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text.strip() == str(right)) for text, right in zip(said, answer, strict=True)]
