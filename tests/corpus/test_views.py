"""Another view of one text: the same sentences, some words others or gone; a function of the draw."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.objectives.test_pretraining import documents, objective_of, tokenizer
from tuner.corpus.views import VIEWS, another_order, split_sentences, synonyms, words_left_out
from tuner.data.draws import Draws
from tuner.errors import DataError

TEXT = "The weather was nice. We bought a large house! Do you like my garden? It is happy."
CHINESE = "今天天气很好。我们买了一座大房子！你喜欢我的花园吗？"


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("text", [TEXT, CHINESE])
def test_sentences_are_in_another_order_and_all_there(text):
    for seed in range(50):
        found = another_order(text, rng(seed))
        assert found != text and sorted(split_sentences(found)) == sorted(split_sentences(text))
    assert len({another_order(text, rng(seed)) for seed in range(50)}) > 3
    assert another_order("One. Two.", rng()) == "Two.\nOne."


@pytest.mark.parametrize(("text", "words"), [(TEXT, 17), (CHINESE, 23)])
def test_a_third_of_the_words_is_gone_and_the_rest_in_order(text, words):
    from tuner.text.words import WORD

    before = WORD.findall(text)
    assert len(before) == words
    for seed in range(20):
        after = WORD.findall(words_left_out(text, rng(seed)))
        assert len(after) == words - round(0.3 * words)
        rest = iter(before)
        assert all(word in rest for word in after), "a subsequence"
    assert words_left_out("two words", rng()) in ("two", "words")


def test_words_become_synonyms_of_wordnet_and_nothing_else_changes():
    assert "kids" not in synonyms("child") and not {"rich person", "wealthy person"} & set(synonyms("have"))
    assert "felicitous" in synonyms("happy") and synonyms("it") == () and "kid" in synonyms("children")
    seen = set()
    for seed in range(20):
        found = VIEWS["synonyms"]("a happy child", rng(seed))
        assert found != "a happy child" and found.startswith("a ")
        seen.add(found)
    assert len(seen) > 4


@pytest.mark.parametrize("kind", VIEWS)
def test_both_views_of_a_batch(kind):
    """The first is the text, the second its view, which depends on epoch and seed and on nothing else."""
    objective = objective_of("contrastive", views=kind)
    rows = Draws(objective.examples(documents(), "documents")[0])
    draws = [rows[number] for number in range(6)]
    batch = objective(draws)
    which = tokenizer("contrastive")
    texts = which.batch_decode(batch["input_ids"], skip_special_tokens=True)
    for row, first, second in zip(draws, texts[:6], texts[6:], strict=True):
        cut = which(str(row["text"]), add_special_tokens=False)["input_ids"][: objective.args.max_length - 2]
        assert first == which.decode(cut) and second != first
    again = objective_of("contrastive", views=kind)(draws)
    assert (again["input_ids"] == batch["input_ids"]).all()
    alone = objective(draws[2:3])["input_ids"][1]
    assert which.decode(alone, skip_special_tokens=True) == texts[8]
    many = range(min(40, len(rows)))  # of two sentences there is one other order alone
    now, later = (objective([rows[number + epoch * len(rows)] for number in many])["input_ids"] for epoch in (0, 1))
    assert now.shape != later.shape or not torch.equal(now, later)
    assert batch["tokens"].max() <= objective.args.max_length


def test_texts_without_such_a_view_are_counted(capsys):
    rows = Dataset.from_dict({"text": ["One. Two.\n", "One."], "source_row": [0, 1]})
    texts, _ = objective_of("contrastive", views="order").examples(rows, "mine.jsonl")
    assert texts["text"] == ["One.\nTwo."]
    assert capsys.readouterr().out == "mine.jsonl: 1 of 2 texts have no such view (--views order).\n"


@pytest.mark.parametrize(
    ("kind", "said"), [("order", "two sentences"), ("deletion", "two words"), ("synonyms", "a word that WordNet knows")]
)
def test_texts_without_such_a_view_are_refused(kind, said):
    rows = Dataset.from_dict({"text": ["好。"], "source_row": [0]})
    with pytest.raises(DataError, match=f"--views {kind}: no text has {said}"):
        objective_of("contrastive", views=kind).examples(rows, "documents")
