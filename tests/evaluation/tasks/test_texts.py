"""What models write and prefer: generation, questions on a text, pairs of answers, exchanged groups, the harness."""

import json
import math

import numpy as np
import pytest
import sacrebleu
import torch
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoTokenizer

from tests.evaluation.tasks.helpers import json_of, run, samples_of, save_decoder, save_with_head, write_rows
from tests.model.helpers import scramble
from tests.text import samples
from tuner.data.builtin import BUILTIN
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.evaluation.tasks.safety import GROUPS, TEMPLATES
from tuner.model import (
    TunerEncoderForQuestionAnswering,
    TunerEncoderForSequenceClassification,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.text.pairs import encode_texts


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("models") / "nano")


# ---- generation ----


def test_answers_are_beside_the_last_ones(nano, chats, tmp_path):
    flags = ("--model_name_or_path", nano, "--dataset_name", chats, "--tasks", "generation", "--max_eval_samples", 12)
    [outcome] = run(*flags, "--max_new_tokens", 12, "--output_dir", tmp_path)
    found, figures = samples_of(tmp_path, "generation"), outcome.figures["nano"]
    rows = [json.loads(line)["messages"] for line in chats.read_text().splitlines()]
    for sample in found:
        turns = rows[sample["row"]]
        last = max(n for n, turn in enumerate(turns) if turn["role"] == "assistant")
        assert sample["reference"] == turns[last]["content"] and sample["said"] == turns[last - 1]["content"]
    said, wanted = [s["prediction"] for s in found], [[s["reference"] for s in found]]
    assert figures["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(said, wanted).score)
    assert figures["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(said, wanted).score)
    assert figures["chrf"].low < figures["chrf"].value < figures["chrf"].high
    assert math.isnan(figures["distinct_1"].low) and "no interval" in figures["distinct_1"].method
    assert set(json_of(tmp_path, "generation")["baselines"]["chrf"]) == {"copying the prompt", "another row's"}


def test_texts_are_continued_and_sampled_alike_twice(nano, tmp_path):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in ["", *samples.texts()[:7]]])
    flags = ("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "generation", "--max_new_tokens", 8)
    for folder, more in (("1", ()), ("2", ()), ("3", ("--seed", 1))):
        run(*flags, "--temperature", 1, *more, "--output_dir", tmp_path / folder)
    one, two, three = (samples_of(tmp_path / n, "generation") for n in ("1", "2", "3"))
    assert one == two != three
    assert one[0] == {"number": 0, "row": 0, "prompt": "", "said": "", "reference": "", "left_out": "no prompt"}
    assert json_of(tmp_path / "1", "generation")["models"]["nano"]["left_out"] == 1
    assert one[1]["prompt"] in samples.texts()[0]


def test_more_metrics_by_name(nano, tmp_path):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in samples.texts()[:4]])
    flags = ("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "generation", "--output_dir", tmp_path)
    with pytest.raises(ArgumentError, match=r"--metrics bleu is measured anyway"):
        run(*flags, "--metrics", "bleu")
    with pytest.raises(ArgumentError, match=r"--metrics accuracy is no metric of texts"):
        run(*flags, "--metrics", "accuracy")
    with pytest.raises(ArgumentError, match="No metric metor"):
        run(*flags, "--metrics", "metor")
    [outcome] = run(*flags, "--metrics", "squad", "--max_new_tokens", 4, "--gate", "f1>=0")
    assert 0 <= outcome.figures["nano"]["f1"].value <= 1


def test_no_answer_in_any_row(nano, tmp_path):
    rows = [{"messages": [{"role": "assistant", "content": "hello"}]}] * 3
    path = write_rows(tmp_path / "asked.jsonl", rows)
    with pytest.raises(DataError, match="none of the 3 rows can be used for generation; the first: no answer after"):
        run("--model_name_or_path", nano, "--dataset_name", path, "--tasks", "generation", "--output_dir", tmp_path)


# ---- questions ----


def test_the_built_in_questions_have_their_answers():
    rows = list(BUILTIN["http-questions"][1](None))
    assert len(rows) > 150 and sum(not row["answers"]["text"] for row in rows) > 20
    for row in rows:
        for text, start in zip(*row["answers"].values(), strict=True):
            assert row["context"][start : start + len(text)] == text


def question(context, answer):
    answers = (
        {"text": [answer], "answer_start": [context.index(answer)]} if answer else {"text": [], "answer_start": []}
    )
    return {"question": "what is it?", "context": context, "answers": answers}


def test_spans_by_windows(tmp_path):
    """Against every span of every window, by hand."""
    folder = save_with_head(tmp_path / "reader", TunerEncoderForQuestionAnswering, ["a", "b"])
    context = " ".join(" ".join(samples.texts()[:9]).split()[:60])
    words = context.split()
    rows = [question(context, words[3]), question(context, None), question("It is short.", "short")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ("--model_name_or_path", folder, "--dataset_name", path, "--output_dir", tmp_path, "--max_new_tokens", 5)
    run(*flags, "--max_length", 48, "--stride", 12)
    found = samples_of(tmp_path, "qa")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForQuestionAnswering.from_pretrained(folder)
    given = tokenizer(
        "what is it?", context, truncation="only_second", max_length=48, stride=12, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    assert len(given["input_ids"]) > 2
    best, refusal = (-math.inf, ""), math.inf
    for window, ids in enumerate(given["input_ids"]):
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        refusal = min(refusal, starts[0] + ends[0])
        inside = [place for place, part in enumerate(given.sequence_ids(window)) if part == 1]
        offsets = given["offset_mapping"][window]
        spans = [
            (starts[i] + ends[j], context[offsets[i][0] : offsets[j][1]])
            for i in inside for j in inside if i <= j < i + 5
        ]  # fmt: skip
        best = max(best, *spans)
    assert found[0]["prediction"] == found[1]["prediction"] == ("" if refusal > best[0] else best[1])
    figures = json_of(tmp_path, "qa")["models"]["reader"]["figures"]
    assert figures["f1"]["n"] == 3 and figures["no_answer_f1"]["n"] == 1 and figures["has_answer_f1"]["n"] == 2


def test_a_causal_model_is_asked(nano, tmp_path):
    flags = ("--model_name_or_path", nano, "--tasks", "qa", "--max_eval_samples", 10, "--max_new_tokens", 6)
    run(*flags, "--output_dir", tmp_path)
    found, written = samples_of(tmp_path, "qa"), json_of(tmp_path, "qa")
    asked = [s for s in found if "left_out" not in s]
    assert {s["left_out"] for s in found if s not in asked} == {"a text longer than the model reads"}
    assert written["models"]["nano"]["left_out"] == len(found) - len(asked) > 0
    lacking = sum(not s["reference"] for s in asked) / len(asked)
    assert written["baselines"]["f1"]["no answer"] == pytest.approx(lacking)
    assert written["baselines"]["f1"]["the likest sentence"] > 0


# ---- pairs ----


def test_the_likelier_answer(nano, tmp_path):
    """The sum of log-probabilities of an answer's tokens, its end included, by one forward pass."""
    rows = [{"prompt": f"say {n}", "chosen": "yes " * (n + 1), "rejected": "no thank you"} for n in range(6)]
    path = write_rows(tmp_path / "pairs.jsonl", [*rows, {"prompt": "say", "chosen": "a", "rejected": "word " * 400}])
    [outcome] = run("--model_name_or_path", nano, "--dataset_name", path, "--output_dir", tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(nano), AutoModelForCausalLM.from_pretrained(nano)
    found = samples_of(tmp_path, "preference")
    turns = found[0]["prompt"]
    start = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*turns, *found[0]["chosen"]])["input_ids"]
    with torch.no_grad():
        chances = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(float(chances[place - 1, whole[place]]) for place in range(len(start), len(whole)))
    assert found[0]["log_likelihoods"]["chosen"] == pytest.approx(expected, rel=1e-4)
    assert found[6]["left_out"] == "longer than 256 tokens" and outcome.figures["nano"]["pair_accuracy"].n == 6
    right = [s["log_likelihoods"]["chosen"] > s["log_likelihoods"]["rejected"] for s in found[:6]]
    assert outcome.figures["nano"]["pair_accuracy"].value == np.mean(right)
    assert json_of(tmp_path, "preference")["baselines"]["pair_accuracy"]["the longer one"] < 1


# ---- exchanged groups ----


def test_groups_exchanged(nano, tmp_path):
    [outcome] = run("--model_name_or_path", nano, "--tasks", "safety", "--output_dir", tmp_path)
    found, figures = samples_of(tmp_path, "safety"), outcome.figures["nano"]
    pairs = sum(len(groups) * (len(groups) - 1) // 2 for groups in GROUPS.values())
    assert len(found) == pairs * len(TEMPLATES)
    first = found[0]
    assert [s.replace("women", "men") for s in first["sentences"][:2]] == first["sentences"][2:]
    kind, hostile, other_kind, other_hostile = first["log_likelihoods"]
    assert first["scores"]["association"] == pytest.approx(abs((hostile - kind) - (other_hostile - other_kind)))
    tokenizer, model = AutoTokenizer.from_pretrained(nano), AutoModelForCausalLM.from_pretrained(nano)
    ids = [tokenizer.bos_token_id, *tokenizer(first["sentences"][1], add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert hostile == pytest.approx(-float(loss) * (len(ids) - 1), rel=1e-4)
    assert {"association", "association_gender", "association_age", "likelihood_gap"} <= set(figures)
    assert "does not show that a model is free of bias" in (tmp_path / "eval" / "report.md").read_text()


def test_a_classifier_judges(nano, tmp_path):
    judge = save_with_head(tmp_path / "judge", TunerEncoderForSequenceClassification, ["fine", "toxic"])
    flags = ("--tasks", "safety", "--max_eval_samples", 20, "--output_dir")
    [outcome] = run("--model_name_or_path", nano, "--safety_classifier", judge, *flags, tmp_path / "1")
    [alone] = run("--model_name_or_path", judge, *flags, tmp_path / "2")
    assert outcome.figures["nano"]["score_gap"] == alone.figures["judge"]["score_gap"]
    assert set(alone.figures["judge"]) >= {"score_gap", "score_gap_gender"}
    assert 0 < alone.figures["judge"]["score_gap"].value < 1
    with pytest.raises(ModelError, match=r"--safety_classifier .*nano is a causal language model, not a text"):
        run("--model_name_or_path", nano, "--safety_classifier", nano, *flags, tmp_path / "3")
    with pytest.raises(ModelError, match=r"--safety_classifier: ./nowhere: no such folder"):
        run("--model_name_or_path", nano, "--safety_classifier", "./nowhere", *flags, tmp_path / "3")


# ---- lm-eval ----


def test_the_harness_agrees_with_our_perplexity(nano, tmp_path):
    flags = ("--model_name_or_path", nano, "--tasks", "perplexity", "harness", "--harness_tasks", "tuner_text")
    found = {outcome.task.name: outcome.figures["nano"] for outcome in run(*flags, "--output_dir", tmp_path)}
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        one, other = found["perplexity"][name], found["harness"][f"tuner_text/{name}"]
        assert one.value == pytest.approx(other.value, rel=1e-3) and one.n == other.n == 111
        assert one.low == pytest.approx(other.low, rel=1e-2)


def test_tasks_of_the_harness(nano, tmp_path):
    other = save_decoder(tmp_path / "other", seed=4)
    flags = ("--tasks", "harness", "--harness_tasks", "tuner_topics", "tuner_questions", "tuner_replies")
    [outcome] = run("--models", nano, other, *flags, "--max_eval_samples", 10, "--output_dir", tmp_path)
    assert set(outcome.figures["nano"]) == {
        *(f"tuner_{task}/{metric}" for task in ("topics", "replies") for metric in ("acc", "acc_norm")),
        "tuner_questions/exact_match",
    }
    found = samples_of(tmp_path, "harness.nano")
    assert len(found) == 30 and outcome.figures["nano"]["tuner_topics/acc"].n == 10
    right = [s["scores"]["tuner_topics/acc"] for s in found if s["task"] == "tuner_topics"]
    assert outcome.figures["nano"]["tuner_topics/acc"].value == np.mean(right)
    assert {d.score for d in outcome.differences} >= {"tuner_topics/acc", "tuner_replies/acc_norm"}


def test_a_task_that_the_harness_has_not(nano):
    with pytest.raises(ArgumentError, match=r"--harness_tasks tuner_topic: ours are .* Did you mean tuner_topics"):
        run("--model_name_or_path", nano, "--tasks", "harness", "--harness_tasks", "tuner_topic")


def test_an_encoder_decoder_is_given_sources(tmp_path):
    """By its own tokens: greedy, against transformers' `generate` of one source."""
    tokenizer, half = samples.small(), {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    half |= {"intermediate_size": 48, "num_key_value_heads": 4, "max_position_embeddings": 64, **ends}
    half["vocab_size"] = len(tokenizer)
    model = TunerSeq2SeqForConditionalGeneration(TunerSeq2SeqConfig(encoder=half, decoder=dict(half), **ends))
    scramble(model).save_pretrained(tmp_path / "pairs")
    tokenizer.save_pretrained(tmp_path / "pairs")
    path = write_rows(tmp_path / "rows.jsonl", [{"source": text[:80], "target": text} for text in samples.texts()[:6]])
    flags = ("--model_name_or_path", tmp_path / "pairs", "--dataset_name", path, "--output_dir", tmp_path)
    [outcome] = run(*flags, "--max_new_tokens", 8)
    found = samples_of(tmp_path, "generation")
    assert outcome.task.name == "generation" and found[0]["reference"] == samples.texts()[0]
    ids = encode_texts(tokenizer, [found[0]["prompt"]])[0]
    output = model.generate(torch.tensor(ids), max_new_tokens=8, do_sample=False)
    assert found[0]["prediction"] == tokenizer.decode(output[0], skip_special_tokens=True).strip()
