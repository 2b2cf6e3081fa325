"""Metrics agree with the libraries' own, whole or in batches, in one process or two; bad input is one message."""

from __future__ import annotations

import inspect
import json
import re
import tracemalloc
import warnings

import numpy as np
import pytest

from tests.processes import ROOT, run_together
from tuner.data.entities import entities
from tuner.errors import ArgumentError, DataError
from tuner.evaluation.metrics import METRICS, SummedMetric, load_metric, text_sizes
from tuner.evaluation.metrics.texts import words

RNG = np.random.default_rng(0)
SAID = ["the cat sat on the mat", "Hello there, my friend !", "it rains", "it rains and it rains and it rains"]
WANTED = ["the cat is on the mat", ["Hello, my friend!", "Hi."], "it rains", "it rained for days\nand days"]
CHANCES = RNG.dirichlet([1, 1, 1], 4)
TAGS = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["B-PER"], ["I-LOC", "I-LOC", "B-LOC"]]
GUESSED_TAGS = [["B-PER", "O", "O"], ["O", "B-LOC"], ["B-LOC"], ["I-LOC", "I-LOC", "I-LOC"]]
TEXTS = {"predictions": SAID, "references": WANTED}
# Four rows of each metric.
ROWS = {
    "accuracy": {"predictions": ["a", "b", "b", "c"], "references": ["a", "b", "c", "c"]},
    "f1": {"predictions": [["a"], ["a", "b"], [], ["c"]], "references": [["a"], ["b"], ["c"], ["c"]]},
    "matthews_correlation": {"predictions": [0, 1, 1, 2], "references": [0, 1, 2, 2]},
    "roc_auc": {"predictions": CHANCES, "references": [0, 1, 2, 1]},
    "calibration": {"predictions": CHANCES, "references": [0, 1, 2, 1]},
    "exact_match": TEXTS,
    "squad": {"predictions": ["The cat", "", "two", "x"], "references": [["cat", "a dog"], [], ["two three"], []]},
    "entity_f1": {"predictions": GUESSED_TAGS, "references": TAGS},
    "bleu": TEXTS,
    "chrf": TEXTS,
    "rouge": TEXTS,
    "perplexity": {"nll": [3.5, 2.0, 9.0, 1.0], "tokens": [3, 2, 5, 1], "words": [2, 2, 4, 1], "bytes": [9, 7, 20, 4]},
    "distinct_n": {"predictions": SAID},
    "self_repetition": {"predictions": SAID},
    "pair_accuracy": {"chosen": [1.0, 2.0, 0.5, 0.0], "rejected": [0.0, 3.0, 0.5, -1.0]},
    "regression": {"predictions": [1.0, 2.5, 2.0, 4.0], "references": [1.0, 2.0, 3.0, 4.5]},
}


@pytest.fixture
def load(tmp_path):
    return lambda name, **config: load_metric(name, cache_dir=str(tmp_path), **config)


def part(rows, *which):
    return {name: [column[row] for row in which] for name, column in rows.items()}


def test_every_metric_is_here():
    assert ROWS.keys() == METRICS.keys()


@pytest.mark.parametrize("name", METRICS)
def test_batches_padding_and_repeats_change_nothing(name, load, monkeypatch):
    for call in ("socket.socket.connect", "socket.getaddrinfo"):
        monkeypatch.setattr(call, None)  # nothing asks a network
    rows, metric = ROWS[name], load(name)
    assert metric.name == name and metric.citation
    whole = metric.compute(**rows)
    assert whole and all(type(value) is float and np.isfinite(value) for value in whole.values())
    metric.add_batch(**part(rows, 0), mask=[True])
    metric.add_batch(**part(rows))
    metric.add_batch(**part(rows, 1, 0, 2), mask=np.array([True, False, True]))
    metric.add(
        **{name.removesuffix("s") if "ences" in name or "ctions" in name else name: c[3] for name, c in rows.items()}
    )
    assert len(metric) == 4
    assert metric.compute() == pytest.approx(whole, rel=1e-12)
    assert load(name, keep_in_memory=True).compute(**rows) == whole
    if isinstance(metric, SummedMetric):
        on_rows = metric.on_rows(**rows)
        assert on_rows(np.arange(4)) == pytest.approx(whole, rel=1e-12)
        chosen = [3, 0, 1, 1, 2]
        drawn, given = on_rows(np.array(chosen)), metric.compute(**part(rows, *chosen))
        assert drawn == pytest.approx(given, rel=1e-12)


TOGETHER = """
import json, os, sys
import tests.evaluation.test_metrics as here
rank, folder = int(os.environ["RANK"]), sys.argv[1]
for name, rows in here.ROWS.items():
    places = dict(cache_dir=folder, num_process=2, process_id=rank, experiment_id="two", timeout=60)
    metric = here.load_metric(name, **places)
    # The second process has one row and one that fills up its batch.
    which, mask = ([0, 2, 3], [True] * 3) if rank == 0 else ([1, 0], [True, False])
    metric.add_batch(**here.part(rows, *which), mask=mask)
    found = metric.compute()
    print(json.dumps([name, found]))
labels = [3, -100] if rank == 0 else [-100, 4]
print(json.dumps(["filled", here.load_metric("accuracy", **places).compute(predictions=[3, 4], references=labels)]))
empty = here.load_metric("accuracy", **places)
if rank == 0:
    empty.add_batch(predictions=[1], references=[1])
print(json.dumps(["empty", empty.compute()]))
"""


def test_two_processes_are_one(tmp_path, load):
    done = run_together(2, "-c", TOGETHER, tmp_path / "cache", timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * (len(ROWS) + 2)
    found = {name: figures for name, figures in lines if figures is not None}
    assert [name for name, figures in lines if figures is None] == [*ROWS, "filled", "empty"], "the second has none"
    for name, rows in ROWS.items():
        assert found[name] == pytest.approx(load(name).compute(**rows), rel=1e-12), name
    assert found["filled"] == {"accuracy": 1.0} and found["empty"] == {"accuracy": 1.0}


def test_a_process_that_does_not_come_is_one_message(load):
    metric = load("accuracy", num_process=2, process_id=0, experiment_id="alone", timeout=0.1)
    with pytest.raises(DataError, match=r"accuracy: Expected to find locked file"):
        metric.add_batch(predictions=[1], references=[1])


def test_what_is_held_does_not_grow_with_the_texts(load):
    metric, long = load("exact_match"), "word " * 800
    for _ in range(50):
        metric.add_batch(predictions=[long] * 200, references=[long] * 200)  # 80 MB in all
    tracemalloc.start()
    assert metric.compute() == {"exact_match": 1.0}
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


# ---- beside the libraries ----


@pytest.mark.parametrize("classes", [2, 5])
def test_labels_are_scikit_learns(classes, load):
    from sklearn import metrics as sk

    rng = np.random.default_rng(classes)
    wanted, guessed = rng.integers(0, classes, (2, 300))
    guessed = np.where(rng.random(300) < 0.5, wanted, guessed)
    scores = rng.dirichlet(np.ones(classes), 300)
    rows = {"predictions": guessed, "references": wanted}
    assert load("accuracy").compute(**rows) == {"accuracy": pytest.approx(sk.accuracy_score(wanted, guessed))}
    macro, micro = (sk.f1_score(wanted, guessed, average=a) for a in ("macro", "micro"))
    assert load("f1").compute(**rows) == pytest.approx({"f1_macro": macro, "f1_micro": micro})
    matthews = load("matthews_correlation").compute(**rows)["matthews_correlation"]
    assert matthews == pytest.approx(sk.matthews_corrcoef(wanted, guessed))
    area = load("roc_auc").compute(predictions=scores, references=wanted)["roc_auc"]
    assert area == pytest.approx(sk.roc_auc_score(wanted, scores if classes > 2 else scores[:, 1], multi_class="ovr"))
    found = load("calibration").compute(predictions=scores, references=wanted)
    assert found["nll"] == pytest.approx(sk.log_loss(wanted, scores))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(wanted, scores if classes > 2 else scores[:, 1]))
    if classes == 2:  # one score a row is that of the second label
        one = {"predictions": scores[:, 1], "references": np.array(["no", "yes"])[wanted]}
        assert load("roc_auc", labels=["no", "yes"]).compute(**one)["roc_auc"] == pytest.approx(area)
        assert load("calibration", labels=["no", "yes"]).compute(**one) == pytest.approx(found)


def test_several_labels_a_row_are_scikit_learns(load):
    from sklearn import metrics as sk

    wanted, guessed = RNG.random((2, 200, 4)) < 0.4
    names = np.array(["a", "b", "c", "d"])
    rows = {"predictions": [names[r].tolist() for r in guessed], "references": [names[r].tolist() for r in wanted]}
    macro, micro = (sk.f1_score(wanted, guessed, average=a) for a in ("macro", "micro"))
    assert load("f1").compute(**rows) == pytest.approx({"f1_macro": macro, "f1_micro": micro})
    assert load("accuracy").compute(**rows)["accuracy"] == pytest.approx(sk.accuracy_score(wanted, guessed))
    scores = RNG.random((200, 4))
    area = load("roc_auc", labels=names).compute(predictions=scores, references=rows["references"])
    assert area["roc_auc"] == pytest.approx(sk.roc_auc_score(wanted, scores))


def test_calibration_by_hand(load):
    # Two bins: 0.6, right in 1 of 2; 0.9, right in 2 of 2.
    chances = [[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9]]
    found = load("calibration", bins=2).compute(predictions=chances[:2], references=[0, 0])
    assert found["ece"] == pytest.approx(0.1)
    found = load("calibration").compute(predictions=chances, references=[0, 0, 0, 1])
    assert found["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)


def test_a_label_that_is_never_met(load):
    rows = {"predictions": ["a", "a"], "references": ["a", "a"]}
    assert load("f1").compute(**rows)["f1_macro"] == 1
    assert load("f1", labels=["a", "b"]).compute(**rows)["f1_macro"] == 0.5


def test_translations_are_sacrebleus(load):
    import sacrebleu

    streams = [[w if isinstance(w, str) else w[0] for w in WANTED], [None, "Hi.", None, None]]
    assert load("bleu").compute(**TEXTS)["bleu"] == sacrebleu.corpus_bleu(SAID, streams).score
    assert load("chrf").compute(**TEXTS)["chrf"] == sacrebleu.corpus_chrf(SAID, streams).score
    plus = load("chrf", word_order=2)
    assert plus.compute(**TEXTS)["chrf"] == sacrebleu.corpus_chrf(SAID, streams, word_order=2).score
    assert "nw:2" in plus.signature and "version:" in plus.signature


def test_summaries_are_rouge_scores(load):
    from rouge_score.rouge_scorer import RougeScorer

    for stemmer in (False, True):
        metric = load("rouge", use_stemmer=stemmer)
        plain = RougeScorer(metric.keys, use_stemmer=stemmer)
        scores = [plain.score_multi([w] if isinstance(w, str) else w, s) for w, s in zip(WANTED, SAID, strict=True)]
        means = {key: np.mean([score[key].fmeasure for score in scores]) for key in metric.keys}
        assert metric.compute(**TEXTS) == pytest.approx(means)


def test_chinese_is_not_lost(load):
    said, wanted = ["今天天气很好。"], ["今天天气不好。"]
    rows = {"predictions": said, "references": wanted}
    assert load("rouge").compute(**rows)["rouge1"] == pytest.approx(5 / 6)
    assert load("squad").compute(**rows) == {"exact_match": 0, "f1": pytest.approx(5 / 6)}
    assert load("exact_match", ignore_punctuation=True).compute(predictions=["好"], references=wanted) == {
        "exact_match": 0
    }
    assert (
        load("exact_match", ignore_punctuation=True).compute(predictions=["好"], references=["好。"])["exact_match"]
        == 1
    )
    with pytest.warns(UserWarning, match="tokenize='zh'"):
        assert load("bleu").compute(**rows)["bleu"] < 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("bleu", tokenize="zh").compute(**rows)["bleu"] > 30
    assert words("I like 北京 café, データ3!") == ["i", "like", "北", "京", "café", "デ", "ー", "タ", "3"]


def test_answers_by_hand(load):
    found = load("squad").compute(**ROWS["squad"])
    # "The cat" is "cat"; "" is right where there is no answer; "two" has one word of two; "x" should have been "".
    assert found["exact_match"] == 0.5 and found["f1"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert found["has_answer_f1"] == pytest.approx((1 + 2 / 3) / 2) and found["no_answer_exact_match"] == 0.5
    answers = [{"text": ["cat"], "answer_start": [3]}, [{"text": "two", "start": 0}]]
    assert load("squad").compute(predictions=["cat!", "three"], references=answers) == {"exact_match": 0.5, "f1": 0.5}


@pytest.mark.parametrize(
    "tags, wanted",  # what seqeval's get_entities gives, ends included
    [
        ("B-PER I-PER O B-LOC", "PER:0-1 LOC:3-3"),
        ("I-PER I-PER O", "PER:0-1"),  # IOB: I- begins one
        ("I-PER B-PER I-PER", "PER:0-0 PER:1-2"),
        ("B-PER I-LOC", "PER:0-0 LOC:1-1"),
        ("B-PER I-PER E-PER S-LOC", "PER:0-2 LOC:3-3"),
        ("S-PER I-PER", "PER:0-0 PER:1-1"),
        ("E-PER E-PER", "PER:0-0 PER:1-1"),
        ("B-PER E-PER I-PER", "PER:0-1 PER:2-2"),
        ("B O I I", "_:0-0 _:2-3"),
        ("B-a-b I-a-b", "a-b:0-1"),
        ("PER PER O PER LOC", "PER:0-1 PER:3-3 LOC:4-4"),  # without prefixes
        ("B-PER L-PER U-LOC", "PER:0-1 LOC:2-2"),  # BILOU, which seqeval's default does not know
        ("O O", ""),
    ],
)
def test_entities(tags, wanted):
    assert {f"{kind}:{first}-{last}" for kind, first, last in entities(tags.split())} == set(wanted.split())


def test_entity_f1_by_hand(load):
    # seqeval's own example: 1 of 2 found, 2 predicted.
    wanted = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    guessed = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = load("entity_f1").compute(predictions=guessed, references=wanted)
    every = {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert found == {**every, **{f"MISC_{k}": 0 for k in every}, **{f"PER_{k}": 1 for k in every}}
    assert load("entity_f1").compute(predictions=[["O"]], references=[["O"]]) == dict.fromkeys(every, 0)


def test_perplexity_is_lm_evals(load):
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.api.task import Task

    texts = ["Two words.", "  中文 and  more\n"]
    sizes = np.array([text_sizes(text) for text in texts])
    assert sizes.tolist() == [[Task.count_words(text), Task.count_bytes(text)] for text in texts]
    nll = [7.5, 20.25]
    metric = load("perplexity")
    found = metric.compute(nll=nll, tokens=[3, 6], words=sizes[:, 0], bytes=sizes[:, 1])
    by_word, by_byte = ([(-n, int(s)) for n, s in zip(nll, column, strict=True)] for column in sizes.T)
    assert found["word_perplexity"] == pytest.approx(weighted_perplexity(by_word))
    assert found["byte_perplexity"] == pytest.approx(weighted_perplexity(by_byte))
    assert found["bits_per_byte"] == pytest.approx(bits_per_byte(by_byte))
    assert found["perplexity"] == pytest.approx(np.exp(27.75 / 9))
    assert metric.compute(nll=[1e9], tokens=[1], words=[1], bytes=[1])["perplexity"] == np.inf


def test_numbers_by_hand(load):
    from scipy.stats import pearsonr, spearmanr

    assert load("pair_accuracy").compute(**ROWS["pair_accuracy"]) == {"pair_accuracy": 0.5, "ties": 0.25}
    guessed, wanted = ROWS["regression"].values()
    found = load("regression").compute(predictions=guessed, references=wanted)
    assert found["rmse"] == pytest.approx(np.sqrt((0.5**2 + 1 + 0.5**2) / 4)) and found["mae"] == 0.5
    assert found["pearson"] == pytest.approx(pearsonr(guessed, wanted)[0])
    assert found["spearman"] == pytest.approx(spearmanr(guessed, wanted)[0])
    constant = load("regression").compute(predictions=[1, 1], references=[1, 2])
    assert constant["pearson"] == constant["spearman"] == 0


def test_diversity_by_hand(load):
    rows = {"predictions": ["a b a b", "a c"]}
    found = load("distinct_n").compute(**rows)
    assert found == pytest.approx({"distinct_1": 3 / 6, "distinct_2": 3 / 4, "distinct_3": 2 / 2})
    # a b, b a, a b: one of three has been there.
    assert load("self_repetition", n=2).compute(**rows)["self_repetition"] == pytest.approx((1 / 3 + 0) / 2)
    assert load("distinct_n").compute(predictions=[""]) == dict.fromkeys(found, 0)


# ---- bad input ----

PAIR = {"predictions": ["a"], "references": ["a"]}
BAD = [
    ("accuracy", {"predictions": ["a"], "references": ["a", "b"]}, "not of one length: 1 predictions, 2 references"),
    ("accuracy", {**PAIR, "mask": [True, False]}, "not of one length: 1 predictions, 1 references, 2 mask"),
    ("accuracy", {"predictions": ["a"]}, "needs references beside predictions"),
    ("accuracy", {**PAIR, "normalize": True}, "takes predictions, references, not normalize"),
    ("accuracy", {"predictions": "ab", "references": "ab"}, "predictions is to be a list"),
    ("accuracy", {"predictions": [], "references": []}, "there is no row to evaluate"),
    ("accuracy", {**PAIR, "mask": [False]}, "there is no row to evaluate"),
    ("accuracy", {"predictions": [1, 2], "references": [1, 2.0]}, "row 1, references: a label is a name or a whole"),
    ("accuracy", {"predictions": [None], "references": ["a"]}, "row 0, predictions: a label is a name"),
    ("matthews_correlation", {"predictions": [["a", "b"]], "references": ["a"]}, "one label is expected, not 2"),
    ("roc_auc", {"predictions": [0.1, 0.9], "references": [1, 1]}, "every row has the label '1': there is no AUC"),
    ("roc_auc", {"predictions": [[0.1, 0.2, 0.7]] * 2, "references": [0, 1]}, "no row has the label '2'"),
    ("roc_auc", {"predictions": [0.1, float("nan")], "references": [1, 0]}, "row 1, predictions: a finite number"),
    ("roc_auc", {"predictions": [[0.1, 0.9], [1.0]], "references": [1, 0]}, "row 1, .* 1 scores, and 2 in the rows"),
    ("roc_auc", {"predictions": [0.1], "references": ["yes"]}, "the label 'yes' is none of 0, 1; `labels` gives them"),
    ("calibration", {"predictions": [[0.9, 0.9]], "references": [1]}, "probabilities are from 0 to 1 and add up"),
    ("calibration", {"predictions": [[0.5, 0.5]], "references": [[0, 1]]}, "one label is expected, not 2"),
    ("exact_match", {"predictions": [3], "references": ["a"]}, "row 0, predictions: a text is expected, not 3"),
    ("exact_match", {"predictions": ["a"], "references": [[]]}, "row 0, references: there is no text"),
    ("squad", {"predictions": ["a"], "references": [[{"start": 1}]]}, "row 0, references: 'text'"),
    (
        "entity_f1",
        {"predictions": [["O"], ["O"]], "references": [["O"], ["O", "O"]]},
        "row 1, references: 2 tags, but 1",
    ),
    ("entity_f1", {"predictions": ["O"], "references": ["O"]}, "a list of tags is expected, not 'O'"),
    ("entity_f1", {"predictions": [[1]], "references": [["O"]]}, "a text is expected, not 1"),
    ("perplexity", {"nll": [1], "tokens": [0], "words": [1], "bytes": [1]}, "there is no token, no word or no byte"),
    ("perplexity", {"nll": [float("inf")], "tokens": [1], "words": [1], "bytes": [1]}, "row 0, nll: a finite number"),
    ("pair_accuracy", {"predictions": [1], "references": [1]}, "takes chosen, rejected, not predictions, references"),
    ("regression", {"predictions": [1, 2], "references": [3, 3]}, "every reference is 3: there is no correlation"),
    ("distinct_n", PAIR, "takes predictions, not references"),
]


@pytest.mark.parametrize("name, rows, message", BAD)
def test_bad_rows_are_one_message(name, rows, message, load):
    metric = load(name)
    with pytest.raises(DataError, match=message) as caught:
        metric.compute(**rows)
    assert str(caught.value).startswith(name) and "\n" not in str(caught.value)
    assert metric.compute(**ROWS[name]), "it is of use afterwards"


def test_a_label_outside_those_given(load):
    with pytest.raises(DataError, match="row 1, predictions: the label 'c' is none of a, b"):
        load("f1", labels=["a", "b"]).add_batch(predictions=["a", "c"], references=["a", "a"])


def test_an_option_or_a_name_that_is_not(load, tmp_path):
    for name, option, message in (
        ("bleu", {"tokenise": "zh"}, "Bleu has no option tokenise. Did you mean tokenize"),
        ("accuracy", {"average": "macro"}, "Accuracy has no option average"),
        ("bleu", {"tokenize": "flores200"}, "bleu has no tokenizer flores200.* It has 13a, zh"),
        ("f1", {"labels": ["a", "a"]}, "a label is given twice"),
        ("calibration", {"bins": 0}, "bins is 1 or more"),
        ("acuracy", {}, "No metric acuracy. Did you mean accuracy.* Ours: accuracy, f1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            load(name, **option)


def test_any_other_metric_is_evaluates(tmp_path):
    (tmp_path / "longest.py").write_text(
        "import datasets\nimport evaluate\n"
        "class Longest(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        features = datasets.Features({'predictions': datasets.Value('string')})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n"
        "    def _compute(self, predictions):\n"
        "        return {'longest': max(map(len, predictions))}\n",
        encoding="utf-8",
    )
    metric = load_metric(str(tmp_path / "longest.py"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=["a", "abc"]) == {"longest": 3}


def test_evaluate_combines_them(load):
    import evaluate

    both = evaluate.combine([load("accuracy"), load("matthews_correlation")])
    both.add_batch(predictions=[1, 0], references=[1, 1])
    assert both.evaluation_modules[0].compute() == {"accuracy": 0.5}
    assert both.compute(predictions=[1, 0], references=[1, 0]).keys() == {"accuracy", "matthews_correlation"}


def test_the_page_lists_what_there_is(load, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.split("## How sure")[0].splitlines() if line.startswith("| `")]
    names, keys, columns, options = zip(
        *([re.findall(r"`(\w+)`", cell) for cell in row[:4]] for row in rows), strict=True
    )
    assert [name for (name,) in names] == list(METRICS)
    for (name,), shown, needed, optional in zip(names, keys, columns, options, strict=True):
        found = load(name).compute(**ROWS[name])
        assert set(shown) - {"PER_precision"} == {key for key in found if not re.match("[A-Z]|has_|no_", key)}
        assert (needed or ["predictions", "references"]) == list(METRICS[name].columns)
        assert optional == [option for option in inspect.signature(METRICS[name]).parameters if option != "places"]
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))
    exec(compile("".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), "metrics.md", "exec"), {})
