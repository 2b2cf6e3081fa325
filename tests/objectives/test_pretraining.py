"""Each objective against what its formula says, written out plainly; and what must have no influence has none."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from tests.model.helpers import scramble
from tests.text import samples
from tuner.corpus.corrupt import IGNORED
from tuner.corpus.segments import to_documents
from tuner.data.draws import FILLER, Draws
from tuner.loading.electra import GeneratorAndDiscriminator
from tuner.model import (
    TunerDecoderConfig,
    TunerDecoderForCausalLM,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerEncoderForPreTraining,
    TunerEncoderModel,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.objectives import electra
from tuner.objectives.base import use_objective
from tuner.objectives.contrastive import embed
from tuner.objectives.electra import BINS, count_scores, fill_in, judge
from tuner.objectives.records import Examples, Layout, Outcome, Rows
from tuner.objectives.registry import PRETRAINING as OBJECTIVES
from tuner.ops import chunked_loss as losses
from tuner.text.train_tokenizer import train_tokenizer

LENGTH = 32
EVERY = pytest.mark.parametrize("name", OBJECTIVES)
# With a head over the vocabulary in `token_sums`.
OF_TOKENS = pytest.mark.parametrize("name", ["clm", "mlm", "mlm+nsp", "denoise"])


@cache
def documents() -> Dataset:
    rows = samples.chitchat().select(range(50)).select_columns(["messages"])
    return to_documents(rows.add_column("source_row", list(range(50))), "messages")


@cache
def tokenizer(name: str) -> Any:
    return train_tokenizer(documents()["text"], "bpe", 450, name)


@cache
def rows_of(name: str) -> Draws:
    return Draws(objective_of(name).examples(documents(), "documents")[0])


def objective_of(name: str, seed: int = 0, **options: Any) -> Any:
    lies = {key: options.pop(key) for key in ("padding_free", "chunked_loss") if key in options}
    layout = Layout(packing=True, **lies)
    extra = {key: options.pop(key) for key in ("label_smoothing_factor",) if key in options}
    args = OBJECTIVES[name].arguments(max_length=LENGTH, seed=seed, **options)
    args.extra = extra
    return OBJECTIVES[name](args, tokenizer(name), layout)


def model_of(name: str, **changes: Any) -> Any:
    """One whose every weight matters, in evaluation mode."""
    which = tokenizer(name)
    shape = {
        "vocab_size": len(which), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "lm_head_bias": True,
        "pad_token_id": which.pad_token_id, "eos_token_id": which.eos_token_id, "hidden_dropout": 0.0, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    if name == "clm":
        return scramble(TunerDecoderForCausalLM(TunerDecoderConfig(**shape)))
    if name == "denoise":
        ends = {"pad_token_id": which.pad_token_id, "eos_token_id": which.eos_token_id}
        parts = {"encoder": dict(shape), "decoder": dict(shape)}
        return scramble(TunerSeq2SeqForConditionalGeneration(TunerSeq2SeqConfig(**parts, **ends)))
    kind = {
        "mlm": TunerEncoderForMaskedLM,
        "mlm+nsp": TunerEncoderForPreTraining,
        "rtd": GeneratorAndDiscriminator,
        "contrastive": TunerEncoderModel,
    }[name]
    return scramble(kind(TunerEncoderConfig(**{"type_vocab_size": 2 if name == "mlm+nsp" else 0, **shape})))


def ragged(name: str, count: int = 4, epoch: int = 0) -> list[dict[str, Any]]:
    """Rows of unlike lengths."""
    draws = rows_of(name)
    rows = [draws[7 * number % len(draws.rows) + epoch * len(draws.rows)] for number in range(count)]
    for number, row in enumerate(rows):
        for column in ("input_ids", "labels", "position_ids"):
            if column in row and number % 3:
                row[column] = row[column][: -5 * (number % 3)]
    return rows


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


def loss_of(objective: Any, model: Any, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, int]:
    totals, counts = objective.loss(model.train(), **inputs_of(objective(rows)))
    return mean_loss(totals, counts) * first(counts), first(counts)


def first(counts: Any) -> int:
    """The count of an objective's first term."""
    return int(torch.as_tensor(counts).reshape(-1)[0])


def mean_loss(totals: torch.Tensor, counts: Any) -> torch.Tensor:
    """The loss of a batch that is the whole global batch."""
    return (totals / torch.as_tensor(counts).clamp(min=1)).sum()


def own_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs_of(batch)).loss


def assert_batches_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_gradients_equal(found: Any, wanted: Any, names: list[str]) -> None:
    for name, mine, plain in zip(names, found, wanted, strict=True):
        assert (mine is None) == (plain is None), name
        if mine is not None:
            scale = float(plain.abs().max())
            torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5 * (1 + scale), msg=name)


# ---- batches ----


@EVERY
def test_a_batch_is_a_function_of_its_draws(name):
    rows = ragged(name)
    batch = objective_of(name)(rows)
    assert_batches_equal(batch, objective_of(name)(copy.deepcopy(rows)))
    later = objective_of(name)(ragged(name, epoch=1))
    other = objective_of(name, seed=1)(rows)
    if name in ("clm", "contrastive"):
        assert_batches_equal(batch, later)
        assert_batches_equal(batch, other)
    else:
        for changed in (later, other):
            assert any(
                batch[key].shape != changed[key].shape or not torch.equal(batch[key], changed[key])
                for key in ("input_ids", "labels")
            )
    before = copy.deepcopy(rows)
    objective_of(name)(rows)
    for row, same in zip(rows, before, strict=True):
        assert all(np.array_equal(row[key], same[key]) for key in same), "rows stay as they are"


@pytest.mark.parametrize("name", ["mlm", "rtd", "denoise"])
def test_what_is_hidden_of_a_row_does_not_depend_on_the_others(name):
    objective, rows = objective_of(name), ragged(name)
    alone, together = objective(rows[2:3]), objective(rows)
    for key in ("input_ids", "labels"):
        row = alone[key][0]
        assert torch.equal(together[key][2, : len(row)], row), key


@EVERY
def test_batches_tell_rows_and_lengths_and_mask_what_is_padded(name):
    rows = ragged(name)
    batch = objective_of(name)(rows)
    pad, twice = tokenizer(name).pad_token_id, 2 if name == "contrastive" else 1
    assert batch["tokens"].shape == (len(rows) * twice,) and len(batch["rows"]) == len(rows) * twice
    if name != "clm":
        assert batch["rows"].flatten().tolist() == [row["row"] for row in rows] * twice
        real = torch.arange(batch["input_ids"].shape[1]) < batch["tokens"][:, None]
        assert torch.equal(batch["attention_mask"], real.long())
        assert (batch["input_ids"][~real] == pad).all() and (batch["input_ids"][real] != pad).all()
    assert batch["tokens"].max() <= LENGTH
    same = objective_of(name)([rows[0]])
    if name in ("mlm", "rtd"):
        assert "attention_mask" not in same and same["input_ids"].shape == (1, LENGTH)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in OBJECTIVES),
        ("denoise", {"corruption": "infilling"}),
    ],
)
def test_no_sequence_is_longer_than_it_may_be(name, options):
    draws, objective = rows_of(name), objective_of(name, **options)
    batch = objective([draws[number] for number in range(min(len(draws), 60))])
    assert batch["tokens"].max() <= LENGTH
    if batch["labels"].dim() == 2:
        assert (batch["labels"] != IGNORED).sum(1).max() <= LENGTH


def test_blocks_begin_and_documents_end_as_the_tokenizer_says():
    which, found = tokenizer("mlm"), np.array(rows_of("mlm").rows["input_ids"])
    assert found.shape[1] == LENGTH and (found[:, 0] == which.cls_token_id).all()
    texts = documents()["text"][:3]
    stream = [t for text in texts for t in [*which(text, add_special_tokens=False)["input_ids"], which.sep_token_id]]
    flat = found[:, 1:].reshape(-1).tolist()
    assert flat[: len(stream)] == stream
    which, found = tokenizer("denoise"), np.array(rows_of("denoise").rows["input_ids"])
    stream = [t for text in texts for t in [*which(text, add_special_tokens=False)["input_ids"], which.eos_token_id]]
    assert found.reshape(-1).tolist()[: len(stream)] == stream


@pytest.mark.parametrize("corruption", ["spans", "infilling"])
def test_what_is_to_be_written(corruption):
    """Of spans each after its sentinel, in order; of infilling the whole text. Both end."""
    which, objective = tokenizer("denoise"), objective_of("denoise", corruption=corruption)
    for number in range(30):
        row = rows_of("denoise")[number]
        made = objective.example(row)
        source, target = made["input_ids"].tolist(), made["labels"].tolist()
        assert source.pop() == which.eos_token_id == target.pop()
        if corruption == "infilling":
            assert target == row["input_ids"].tolist() and which.mask_token_id in source
            continue
        marks = which.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(100)])
        shown = [token for token in source if token in marks]
        assert shown == marks[: len(shown)] and [t for t in target if t in marks] == marks[: len(shown) + 1]
        text = []
        for token in source:
            text += (
                target[target.index(token) + 1 : target.index(marks[marks.index(token) + 1])]
                if (token in marks)
                else [token]
            )
        assert text == row["input_ids"].tolist()


def test_spans_are_as_many_and_as_long_as_the_flags_say():
    which, row = tokenizer("denoise"), rows_of("denoise")[0]
    for share, mean in ((0.3, 2.0), (0.15, 1.0)):
        spans = objective_of("denoise", mlm_probability=share, mean_noise_span_length=mean).example(row)
        count = round(round(share * len(row["input_ids"])) / mean)
        text = ~np.isin(spans["labels"][:-1], which.all_special_ids)
        assert (~text).sum() == count + 1 and text.sum() == round(share * len(row["input_ids"]))
    hidden = {"mlm_probability": 0.5, "corruption": "infilling"}
    lengths = [
        len(objective_of("denoise", mean_noise_span_length=mean, **hidden).example(row)["input_ids"])
        for mean in (1.0, 10.0)
    ]
    assert lengths[0] > lengths[1], "longer spans are fewer masks"


def test_half_of_the_second_segments_are_another_documents():
    which, objective, draws = tokenizer("mlm+nsp"), objective_of("mlm+nsp"), rows_of("mlm+nsp")
    rows = [draws[number] for number in range(200)]
    batch = objective(rows)
    relation = batch["next_sentence_label"]
    assert abs(float(relation.float().mean()) - 0.5) < 5 * 0.5 / np.sqrt(200)
    seconds: dict[tuple[int, ...], set[int]] = {}
    for row in rows:
        seconds.setdefault(tuple(row["second"]), set()).add(int(row["document"]))
    whole = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    for row, ids, types, count, other in zip(
        rows, whole, batch["token_type_ids"], batch["tokens"], relation, strict=True
    ):
        ids, types = ids[:count].tolist(), types.tolist()
        first = [which.cls_token_id, *row["first"].tolist(), which.sep_token_id]
        assert ids[: len(first)] == first and ids[-1] == which.sep_token_id
        second = ids[len(first) : -1]
        assert types == [0] * len(first) + [1] * (len(second) + 1) + [0] * (len(types) - count)
        if other:
            assert seconds[tuple(second)] - {int(row["document"])}, "another document's"
        else:
            assert second == row["second"].tolist()
    same = [{**row, "document": np.int64(5)} for row in rows]
    assert not objective(same)["next_sentence_label"].any(), "within one document there is no other's"


def test_whole_words_are_an_option():
    which = tokenizer("mlm")
    tokens = which.convert_ids_to_tokens(list(range(len(which))))
    batch = objective_of("mlm", whole_word=True, mlm_probability=0.3)([rows_of("mlm")[n] for n in range(20)])
    hidden = batch["labels"] != IGNORED
    whole = torch.where(hidden, batch["labels"], batch["input_ids"])
    inner = 0
    for ids, chosen in zip(whole.tolist(), hidden.tolist(), strict=True):
        for at in range(1, len(ids)):
            if tokens[ids[at]].isalpha() and tokens[ids[at]].isascii() and tokens[ids[at - 1]].lstrip("Ġ").isalpha():
                assert chosen[at] == chosen[at - 1], "within a word all or nothing"
                inner += chosen[at]
    assert inner > 20
    assert 0.3 <= hidden.sum() / (~np.isin(whole, which.all_special_ids)).sum() < 0.36


def test_what_the_generator_fills_in_was_a_mask():
    """Unlike in mlm, a token that is chosen is always hidden."""
    batch = objective_of("rtd")(ragged("rtd"))
    assert (batch["input_ids"][batch["labels"] != IGNORED] == tokenizer("rtd").mask_token_id).all()
    batch = objective_of("mlm")(ragged("mlm", 40))
    assert (batch["input_ids"][batch["labels"] != IGNORED] != tokenizer("mlm").mask_token_id).any()


# ---- losses ----


@OF_TOKENS
@pytest.mark.parametrize("slices", [False, True])
def test_loss_and_gradients_are_the_models_own(name, slices, monkeypatch):
    if slices:
        monkeypatch.setattr(losses, "slice_rows", lambda *_: 256)
    model, objective = model_of(name), objective_of(name)
    batch = objective(ragged(name))
    names, parameters = zip(*model.named_parameters(), strict=True)
    plain = own_loss(model, batch)
    wanted = torch.autograd.grad(plain, parameters, allow_unused=True)
    totals, counts = objective.loss(model, **inputs_of(batch))
    found = mean_loss(totals, counts)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    assert_gradients_equal(torch.autograd.grad(found, parameters, allow_unused=True), wanted, names)
    counted = objective.sums(model, **inputs_of(batch), training=True)["count"]
    assert int(counted) == first(objective.counts(batch)), "known before the forward pass"
    use_objective(model.train(), objective)
    torch.testing.assert_close(own_loss(model, batch), plain, rtol=1e-5, atol=1e-5)
    whole = torch.full_like(objective.counts(batch), 7)
    torch.testing.assert_close(model(**inputs_of(batch), num_items_in_batch=whole).loss, (totals / 7).sum())


def logits_of(name: str, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of all tokens that count, and those tokens."""
    inputs = inputs_of(batch)
    labels = inputs.pop("labels")
    inputs.pop("next_sentence_label", None)
    if name == "denoise":
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    found = model(**inputs)
    logits = found.prediction_logits if name == "mlm+nsp" else found.logits
    if name == "clm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != IGNORED], labels[labels != IGNORED]


@OF_TOKENS
def test_z_loss_is_the_square_of_the_logs_of_the_sums(name):
    model, weight = model_of(name).train(), 0.03
    batch = objective_of(name)(ragged(name))
    names, parameters = zip(*model.named_parameters(), strict=True)
    logits, targets = logits_of(name, model, batch)
    squares = logits.logsumexp(-1).square().sum()
    totals, counts = objective_of(name, z_loss=weight).loss(model, **inputs_of(batch))
    without, _ = objective_of(name).loss(model, **inputs_of(batch))
    count = first(counts)
    assert count == len(targets) and float(squares.detach()) > count
    torch.testing.assert_close((totals - without).sum(), weight * squares, rtol=1e-3, atol=1e-3)
    found = torch.autograd.grad(mean_loss(totals, counts) * count, parameters, allow_unused=True)
    plain = F.cross_entropy(logits, targets, reduction="sum") + weight * squares
    if name == "mlm+nsp":
        relation = model(**{k: v for k, v in inputs_of(batch).items() if k not in ("labels", "next_sentence_label")})
        plain = plain + count * F.cross_entropy(relation.seq_relationship_logits, batch["next_sentence_label"])
    assert_gradients_equal(found, torch.autograd.grad(plain, parameters, allow_unused=True), names)
    sums = [objective_of(name, z_loss=z).sums(model, **inputs_of(batch))["loss"] for z in (weight, 0.0)]
    torch.testing.assert_close(*sums, msg="what is measured is the likelihood alone")


@OF_TOKENS
def test_label_smoothing_is_that_of_torch(name):
    """Over the tokens that are asked for, shifted where the model is causal; evaluation is without it."""
    model = model_of(name)
    objective = objective_of(name, label_smoothing_factor=0.1)
    batch = objective(ragged(name))
    logits, targets = logits_of(name, model, batch)
    plain = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
    totals, _ = objective.loss(model, **inputs_of(batch))
    torch.testing.assert_close(totals.reshape(-1)[0], plain, rtol=1e-5, atol=1e-4)
    sums = [each.sums(model, **inputs_of(batch))["loss"] for each in (objective, objective_of(name))]
    torch.testing.assert_close(*sums)


@OF_TOKENS
def test_what_evaluation_adds_up(name):
    model, objective = model_of(name), objective_of(name)
    batch = objective(ragged(name))
    with torch.no_grad():
        logits, targets = logits_of(name, model, batch)
    sums = {key: value.detach().double().numpy() for key, value in objective.sums(model, **inputs_of(batch)).items()}
    assert int(sums["count"]) == len(targets)
    mean = F.cross_entropy(logits, targets)
    np.testing.assert_allclose(sums["loss"], float(mean.detach()) * len(targets), rtol=1e-5)
    if name == "mlm+nsp":
        inputs = {k: v for k, v in inputs_of(batch).items() if k not in ("labels", "next_sentence_label")}
        relation = model(**inputs).seq_relationship_logits
        mean = mean + F.cross_entropy(relation, batch["next_sentence_label"])
    twice = {key: value * 2 for key, value in sums.items()}
    found = objective.metrics(dict(sums))
    assert found["loss"] == pytest.approx(float(mean.detach()), rel=1e-5)
    assert objective.metrics(twice) == pytest.approx(found), "metrics are means"
    if name != "clm":
        assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == targets).float().mean()))
    if name == "mlm+nsp":
        guess = relation.argmax(-1)
        assert found["nsp_accuracy"] == float((guess == batch["next_sentence_label"]).float().mean())


def test_a_byte_is_predicted_with_and_without_the_ends_of_documents():
    """The second is lm-eval's `byte_perplexity`, of a text whose tokens all have one before them."""
    model, objective, rows = model_of("clm"), objective_of("clm"), documents()
    blocks, _ = objective.examples(rows, "documents")
    draws = Draws(blocks)
    sums = [objective.sums(model, **inputs_of(objective([draws[n]]))) for n in range(len(draws))]
    totals = {name: np.sum([each[name].double().numpy(force=True) for each in sums], axis=0) for name in sums[0]}
    after = {f"eval_{name}": value for name, value in objective.metrics(totals).items()}
    outcome = Outcome(model, Rows("text", rows, rows), Examples(blocks, blocks), after, {}, lambda: model)
    found = objective.compare(outcome)
    end, nats, size = objective.tokenizer.eos_token_id, {True: 0.0, False: 0.0}, 0
    for block in blocks.with_format("torch"):
        for start in (block["position_ids"] == 0).nonzero().flatten().tolist():
            rest = (block["position_ids"][start + 1 :] == 0).nonzero().flatten().tolist()
            ids = block["input_ids"][start : start + 1 + rest[0] if rest else None]
            with torch.no_grad():
                each = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            for is_end in nats:
                nats[is_end] += float(each[(ids[1:] == end) == is_end].sum())
            size += len(objective.tokenizer.decode(ids, skip_special_tokens=True).encode())
    assert nats[True] > 0 and nats[False] > 0
    counted, not_counted = (found[f"perplexity a byte, end tokens{negation} counted"] for negation in ("", " not"))
    assert counted["trained"] == pytest.approx(np.exp((nats[True] + nats[False]) / size), rel=1e-4)
    assert not_counted["trained"] == pytest.approx(np.exp(nats[False] / size), rel=1e-4)
    assert not_counted["5-gram"] < counted["5-gram"]


def test_joined_rows_have_the_loss_of_padded_ones():
    model, rows = model_of("clm"), ragged("clm")
    padded, count = loss_of(objective_of("clm"), model, rows)
    joined, same = loss_of(objective_of("clm", padding_free=True), model, rows)
    assert count == same
    torch.testing.assert_close(joined, padded, rtol=1e-5, atol=1e-4)


SCALE, EXPERTS = {"logit_scale": 0.4}, {"num_local_experts": 4, "router_aux_loss_coef": 0.5}


@pytest.mark.parametrize(("name", "changes"), [("clm", SCALE), ("denoise", SCALE), ("clm", EXPERTS)])
def test_models_whose_loss_has_more_to_it(name, changes):
    how = {"chunked_loss": False} if (name, changes) == ("clm", SCALE) else {}  # as the probe finds
    model, objective = model_of(name, **changes), objective_of(name, **how)
    batch = objective(ragged(name))
    plain = own_loss(model, batch)
    use_objective(model.train(), objective)
    torch.testing.assert_close(own_loss(model, batch), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["clm", "mlm"])
def test_what_is_validated_has_no_balance_of_experts_in_it(name):
    model, objective = model_of(name, **EXPERTS), objective_of(name)
    batch = objective(ragged(name))
    with torch.no_grad():
        logits, targets = logits_of(name, model, batch)
        total, _ = objective.loss(model, **inputs_of(batch))
        found = objective.sums(model, **inputs_of(batch))["loss"]
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-5, atol=1e-4)
    assert total > found * 1.01, "what is learnt has"


def test_masked_tokens_with_experts():
    model, objective = model_of("mlm", **EXPERTS), objective_of("mlm")
    batch = objective(ragged("mlm"))
    plain = own_loss(model, batch)
    use_objective(model.train(), objective)
    torch.testing.assert_close(own_loss(model, batch), plain, rtol=1e-5, atol=1e-5)


@EVERY
def test_without_labels_it_is_the_models_own_forward(name):
    model = model_of(name)
    batch = inputs_of(objective_of(name)(ragged(name)))
    for key in ("labels", "next_sentence_label", "choice_seed"):
        labels = batch.pop(key, None)
        if name == "denoise" and key == "labels":
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    plain = model(**batch)
    use_objective(model, objective_of(name))
    found = model(**batch)
    assert type(found) is type(plain) and found.keys() == plain.keys() and "loss" not in found
    output = next(iter(found))
    assert torch.equal(found[output], plain[output])
    labelled = inputs_of(objective_of(name)(ragged(name)))
    assert {"loss", "count"} <= set(model(**labelled)), "sums in evaluation"
    assert set(model.train()(**labelled)) == {"loss"}
    assert type(copy.deepcopy(model)).__name__ == type(model).__name__


@pytest.mark.parametrize(
    "name",
    [
        *("clm", "mlm", "mlm+nsp", "rtd", "denoise", "contrastive"),
    ],
)
def test_nothing_to_learn_is_a_loss_of_zero(name):
    """Blocks of special tokens alone, of which none can be hidden."""
    model, objective = model_of(name), objective_of(name)
    use_objective(model.train(), objective)
    batch = inputs_of(objective(ragged(name)))
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    if "next_sentence_label" in batch:
        batch["next_sentence_label"] = torch.full_like(batch["next_sentence_label"], IGNORED)
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


# ---- what must have no influence ----


@EVERY
def test_padding_has_no_influence(name):
    model, objective = model_of(name), objective_of(name)
    batch = inputs_of(objective(ragged(name)))
    total, count = objective.loss(model, **batch)
    sums = objective.sums(model, **batch)
    real = torch.arange(batch["input_ids"].shape[1]) < objective(ragged(name))["tokens"][:, None]
    assert not real.all()
    batch["input_ids"] = torch.where(real, batch["input_ids"], 9)
    if "token_type_ids" in batch:
        batch["token_type_ids"] = torch.where(real, batch["token_type_ids"], 1)
    again, same = objective.loss(model, **batch)
    torch.testing.assert_close(again, total, rtol=1e-5, atol=1e-4)
    assert first(count) == first(same)
    for key, value in objective.sums(model, **batch).items():
        torch.testing.assert_close(value, sums[key], rtol=1e-5, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["clm", "mlm", "denoise"])
def test_a_batch_is_the_sum_of_its_rows(name):
    model, objective, rows = model_of(name), objective_of(name), ragged(name)
    total, count = loss_of(objective, model, rows)
    alone = [loss_of(objective, model, [row]) for row in rows]
    torch.testing.assert_close(total, sum(loss for loss, _ in alone), rtol=1e-5, atol=1e-3)
    assert count == sum(each for _, each in alone)


@pytest.mark.parametrize(
    "name",
    [
        *("clm", "mlm", "mlm+nsp", "rtd", "denoise", "contrastive"),
    ],
)
def test_what_fills_a_batch_does_not_count(name):
    """The last rows come again to fill the batch, without a draw."""
    model, objective, rows = model_of(name), objective_of(name), ragged(name)
    for row in rows:
        row.pop("document", None)
        row |= {"document": 0} if name == "mlm+nsp" else {}  # else the draw of another's depends on who is there
    fillers = [{**row, "draw": FILLER} for row in rows[1:3]]
    found, wanted = (objective.sums(model, **inputs_of(objective(each))) for each in (rows + fillers, rows))
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-3, msg=key)
    only = objective.sums(model, **inputs_of(objective(fillers)))
    assert all(torch.isfinite(value).all() and not value.any() for value in only.values())
    assert objective.metrics({key: value.detach().numpy() for key, value in only.items()}) == {}, "no number of nothing"


@pytest.mark.parametrize("name", ["mlm+nsp", "rtd"])
def test_each_term_is_a_mean_over_its_own_count_however_a_step_is_cut(name, monkeypatch):
    """Parts that are unlike in hidden tokens, in judged ones and in pairs."""

    def fill_in_the_next(hidden, targets, *_):  # whatever the seed of the part is
        return F.cross_entropy(model.generator.lm_head(hidden), targets, reduction="sum"), (targets + 1) % 400

    monkeypatch.setattr(electra, "fill_in", fill_in_the_next)
    model, objective = model_of(name), objective_of(name)
    use_objective(model.train(), objective)
    whole = inputs_of(objective(ragged(name)))
    hidden = (whole["labels"][0] != IGNORED).nonzero()
    whole["labels"][0, hidden[1:]] = IGNORED
    parts = [{key: value[rows] for key, value in whole.items()} for rows in (slice(1), slice(1, None))]
    counts = torch.stack([objective.counts(part) for part in parts])
    assert (counts[0] / counts.sum(dim=0)).diff().abs() > 0.1, "the first has few hidden tokens for its length"
    losses = [model(**part, num_items_in_batch=counts.sum(dim=0)).loss for part in parts]
    torch.testing.assert_close(sum(losses), model(**whole).loss)


# ---- replaced tokens ----


def hidden_and_inputs() -> tuple[torch.Tensor, dict[str, Any]]:
    rows = ragged("rtd")
    rows[1]["draw"] = FILLER
    inputs = inputs_of(objective_of("rtd")(rows))
    return inputs["labels"] != IGNORED, inputs


def test_replaced_tokens_are_where_tokens_were_hidden_and_nowhere_else(monkeypatch):
    hidden, inputs = hidden_and_inputs()
    model, objective, seen = model_of("rtd"), objective_of("rtd"), []
    forward = model.discriminator.forward
    monkeypatch.setattr(model.discriminator, "forward", lambda **kwargs: seen.append(kwargs) or forward(**kwargs))
    total, scores, is_replaced = objective.both(model, **inputs)
    [shown] = seen
    filled, mask = shown["input_ids"], shown["attention_mask"].bool()
    assert torch.equal(filled[~hidden], inputs["input_ids"][~hidden])
    assert torch.equal(mask.long(), inputs["attention_mask"])
    counts = mask & torch.tensor([True, False, True, True])[:, None]
    original = torch.where(hidden, inputs["labels"], inputs["input_ids"])
    assert torch.equal(is_replaced, (filled != original)[counts]) and is_replaced.any()
    plain = model.discriminator(input_ids=filled, attention_mask=mask.long()).logits[counts]
    torch.testing.assert_close(scores, plain)
    generator = model.generator(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    wanted = F.cross_entropy(generator.logits[hidden], inputs["labels"][hidden], reduction="sum")
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-4)
    labels = (filled != original).long().masked_fill(~counts, IGNORED)
    own = model.discriminator(input_ids=filled, attention_mask=mask.long(), labels=labels).loss
    totals, found = objective.loss(model, **inputs)
    assert found.tolist() == [int(hidden.sum()), int(counts.sum())]
    torch.testing.assert_close(mean_loss(totals, found), wanted / hidden.sum() + 50 * own, rtol=1e-5, atol=1e-4)


def test_the_original_drawn_by_luck_is_not_replaced():
    hidden, inputs = hidden_and_inputs()
    inputs.pop("choice_seed")
    labels = inputs.pop("labels")
    lucky = torch.arange(int(hidden.sum())) % 2 == 0
    drawn = torch.where(lucky, labels[hidden], (labels[hidden] + 1) % 400)
    scores, is_replaced = judge(model_of("rtd"), labels, drawn, **inputs)
    assert int(is_replaced.sum()) == int((~lucky).sum()) and len(scores) == len(is_replaced)
    _, none = judge(model_of("rtd"), labels, labels[hidden], **inputs)
    assert not none.any()


def test_neither_learns_from_the_others_loss_but_through_the_embeddings():
    _, inputs = hidden_and_inputs()
    model = model_of("rtd")
    names, parameters = zip(*model.named_parameters(), strict=True)
    total, scores, is_replaced = objective_of("rtd").both(model, **inputs)
    judged = F.binary_cross_entropy_with_logits(scores, is_replaced.float())
    shared = model.discriminator.model.embed_tokens.weight
    assert shared is model.generator.model.embed_tokens.weight is model.generator.lm_head.weight
    for loss, of in ((total, "generator."), (judged, "discriminator.")):
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            learns = gradient is not None and bool(gradient.any())
            assert learns == (parameter is shared or name.startswith(of)), name


def test_the_generator_is_smaller_and_both_take_any_batch():
    model = model_of("rtd", num_attention_heads=8, num_key_value_heads=4)
    assert model.generator.config.hidden_size == 8 and model.discriminator.config.hidden_size == 32
    assert model.generator.config.num_hidden_layers == 2
    total, _ = loss_of(objective_of("rtd"), model, ragged("rtd"))
    assert torch.isfinite(total)


def test_tokens_are_drawn_from_the_softmax():
    """Of logits alone: the head is what the stub says."""
    model: Any = SimpleNamespace(generator=SimpleNamespace(lm_head=lambda hidden: hidden))
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, -30.0]).expand(40_000, 5)
    targets = torch.arange(40_000) % 5
    loss, drawn = fill_in(logits, targets, model, 11)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="sum"))
    share = torch.bincount(drawn, minlength=5) / 40_000
    torch.testing.assert_close(share, logits[0].softmax(-1), rtol=0, atol=5 * 0.5 / 200)
    assert torch.equal(drawn, fill_in(logits, targets, model, 11)[1])
    other = fill_in(logits, targets, model, 12)[1]
    assert 0.3 < (drawn == other).float().mean() < 0.6, "as two independent draws agree"
    state = torch.get_rng_state()
    fill_in(logits, targets, model, 13)
    assert torch.equal(state, torch.get_rng_state()), "the seed of dropout stays where it was"


@pytest.mark.parametrize("centre", [-3.0, 0.0, 2.0])
def test_the_area_is_that_of_all_scores_together(centre):
    objective = objective_of("rtd")
    rng = np.random.default_rng(0)
    sums: dict[str, Any] = {}
    everything: list[tuple[np.ndarray, np.ndarray]] = []
    for size in (5000, 3000, 1):
        wrong = rng.random(size) < 0.2
        scores = rng.normal(centre, 1.5, size) + 1.2 * wrong
        everything.append((scores, wrong))
        counts = count_scores(torch.tensor(scores), torch.tensor(wrong))
        told = {"loss": torch.tensor(3.0), "judged_loss": torch.tensor(2.0), "count": torch.tensor(size // 2)}
        for key, value in (told | counts).items():
            sums[key] = sums.get(key, 0) + value.double().numpy()
    scores, wrong = (np.concatenate(each) for each in zip(*everything, strict=True))
    found = objective.metrics(dict(sums))
    assert found["auc"] == pytest.approx(roc_auc_score(wrong, scores), abs=1e-3)
    assert found["loss"] == pytest.approx(9 / 4000 + 50 * 6 / 8001)
    assert found["generator_loss"] == pytest.approx(9 / 4000) and found["replaced"] == pytest.approx(wrong.sum() / 4000)


def test_the_area_at_its_ends():
    objective = objective_of("rtd")
    bins = np.zeros((3, BINS))
    bins[0, 10], bins[1, 900], bins[2, 10] = 7, 3, 2
    for positive, negative, area in ((1, 0, 1.0), (0, 1, 0.0), (0, 2, 0.5)):
        sums = {"loss": np.array(1.0), "count": np.array(10), "judged_loss": np.array(1.0)}
        sums |= {"positive": bins[positive], "negative": bins[negative]}
        assert objective.metrics(sums)["auc"] == area


# ---- contrastive ----


def plain_contrast(model: Any, pairs: list[tuple[list[int], list[int]]], temperature: float) -> torch.Tensor:
    """Text by text, without padding."""

    def vector(ids: list[int]) -> torch.Tensor:
        mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        return mean / mean.norm()

    ones, others = ([vector(pair[side]) for pair in pairs] for side in (0, 1))
    total = torch.zeros(())
    for i in range(len(pairs)):
        forward = torch.stack([ones[i] @ other / temperature for other in others])
        back = torch.stack([others[i] @ one / temperature for one in ones])
        total = total - (forward.log_softmax(0)[i] + back.log_softmax(0)[i]) / 2
    return total


def texts_of(rows: list[dict[str, Any]], second: str = "second") -> list[tuple[list[int], list[int]]]:
    which = tokenizer("contrastive")

    def ends(ids: np.ndarray) -> list[int]:
        return [which.cls_token_id, *ids.tolist(), which.sep_token_id]

    return [(ends(row["first"]), ends(row[second])) for row in rows]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3}, {"views": "dropout"}], ids=str)
def test_the_contrast_is_that_of_the_formula(options):
    model, rows = model_of("contrastive"), ragged("contrastive", 6)
    objective = objective_of("contrastive", **options)
    names, parameters = zip(*model.named_parameters(), strict=True)
    pairs = texts_of(rows, "first" if "views" in options else "second")
    plain = plain_contrast(model, pairs, options.get("temperature", 0.05))
    wanted = torch.autograd.grad(plain, parameters, allow_unused=True)
    total, count = loss_of(objective, model, rows)
    assert count == 6
    torch.testing.assert_close(total, plain, rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(loss_of(objective, model, rows)[0], parameters, allow_unused=True)
    assert_gradients_equal(found, wanted, list(names))
    sums = objective.sums(model, **inputs_of(objective(rows)))
    vectors = embed(model, **{k: v for k, v in inputs_of(objective(rows)).items() if k != "labels"})
    right = (vectors[:6] @ vectors[6:].T).argmax(1) == torch.arange(6)
    assert int(sums["accuracy"]) == int(right.sum()) and int(sums["count"]) == 6


def test_two_views_of_a_text_differ_by_dropout_alone():
    objective, rows = objective_of("contrastive", views="dropout"), ragged("contrastive")
    batch = objective(rows)
    ones, others = batch["input_ids"].chunk(2)
    assert torch.equal(ones, others)
    model = model_of("contrastive", hidden_dropout=0.3)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    ones, others = embed(model, **inputs).chunk(2)
    torch.testing.assert_close(ones, others)
    ones, others = embed(model.train(), **inputs).chunk(2)
    assert ((ones - others).abs().max(dim=1).values > 1e-3).all()


def contrast_in_a_process(rank: int, folder: str) -> None:
    """Half of the pairs, the other half's texts being negatives."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, objective, batches = torch.load(f"{folder}/given", weights_only=False)
    total, count = objective.loss(model, **batches[rank])
    total.sum().backward()
    torch.save((total.sum().detach(), int(count), [p.grad for p in model.parameters()]), f"{folder}/found{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path):
    model, objective, rows = model_of("contrastive"), objective_of("contrastive"), ragged("contrastive", 6)
    batches = [inputs_of(objective(half)) for half in (rows[:3], rows[3:])]
    torch.save((model, objective, batches), tmp_path / "given")
    # A fork imports nothing anew; where there is an accelerator its threads forbid it.
    method = "spawn" if torch.accelerator.is_available() else "fork"
    torch.multiprocessing.start_processes(contrast_in_a_process, (str(tmp_path),), nprocs=2, start_method=method)
    found = [torch.load(tmp_path / f"found{rank}") for rank in range(2)]
    total, count = loss_of(objective, model, rows)
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(total, parameters, allow_unused=True)
    torch.testing.assert_close(found[0][0] + found[1][0], total, rtol=1e-5, atol=1e-4)
    assert found[0][1] + found[1][1] == count
    summed = [None if one is None else one + other for one, other in zip(found[0][2], found[1][2], strict=True)]
    assert_gradients_equal(summed, wanted, list(names))
    apart = sum(loss_of(objective, model, half)[0] for half in (rows[:3], rows[3:]))
    assert apart.item() < total.item() - 0.1, "the other process's texts are negatives"
