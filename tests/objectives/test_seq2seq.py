"""seq2seq: the model's own loss, on its own start and shift; rows of every shape; what is cut and what is compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBart50Tokenizer,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.model.helpers import SHAPE, scramble
from tests.text.samples import texts
from tuner.data.draws import FILLER, Draws
from tuner.data.pairs import translated
from tuner.data.schema import canonicalize
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.evaluation.baselines.pairs import lead_length, lead_sentences, sentences
from tuner.loading.models import build_model
from tuner.model import TunerSeq2SeqConfig
from tuner.model import TunerSeq2SeqForConditionalGeneration as OurPair
from tuner.objectives.arguments import Seq2SeqArguments
from tuner.objectives.base import use_objective
from tuner.objectives.records import Examples, Outcome, Rows
from tuner.objectives.seq2seq import Seq2Seq
from tuner.text.train_tokenizer import train_tokenizer

ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
BART = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "dropout": 0.0},
    **{"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128},
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
MODELS: dict[str, Any] = {
    "ours": lambda size: OurPair(
        TunerSeq2SeqConfig(encoder={**SHAPE, "vocab_size": size}, decoder={**SHAPE, "vocab_size": size, **ENDS}, **ENDS)
    ),
    "T5": lambda size: T5ForConditionalGeneration(T5Config(**T5, vocab_size=size, decoder_start_token_id=0, **ENDS)),
    "BART": lambda size: BartForConditionalGeneration(
        BartConfig(**BART, vocab_size=size, decoder_start_token_id=1, forced_eos_token_id=1, **ENDS)
    ),
    "Marian": lambda size: MarianMTModel(
        MarianConfig(**BART, vocab_size=size, decoder_start_token_id=0, forced_eos_token_id=1, **ENDS)
    ),
    "M2M100": lambda size: M2M100ForConditionalGeneration(
        M2M100Config(**BART, vocab_size=size, decoder_start_token_id=1, **ENDS)
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(texts(), "bpe", 600, "seq2seq")


def pairs(count: int = 12) -> Dataset:
    """Real sentences in lower case, and as they were written."""
    said = [text for text in texts() if 20 < len(text) < 120][:count]
    return Dataset.from_dict({"source": [text.lower() for text in said], "target": said})


def make(name: str, tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return scramble(MODELS[name](len(tokenizer)))


def objective(tokenizer: Any, **flags: Any) -> Seq2Seq:
    return Seq2Seq(Seq2SeqArguments(**{"max_length": 64, **flags}), tokenizer)


def batch_of(method: Seq2Seq, rows: Dataset, numbers: Any = range(4)) -> dict[str, torch.Tensor]:
    draws = Draws(method.examples(rows, "rows")[0])
    return method([draws[number] for number in numbers])


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_models_own(name, tokenizer):
    """Of a padded batch: sum and count give the mean that the model itself computes; in training the same."""
    model, method = make(name, tokenizer), objective(tokenizer)
    batch = inputs_of(batch_of(method, pairs()))
    assert (batch["labels"] == -100).any() and (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        own = model(**batch).loss
    use_objective(model, method)
    with torch.no_grad():
        sums = model(**batch)
    torch.testing.assert_close(sums["loss"] / sums["count"], own, rtol=1e-5, atol=1e-6)
    loss = model.train()(**batch).loss
    torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-6)
    loss.backward()
    unmoved = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unmoved, unmoved


@pytest.mark.parametrize("name", ["ours", "BART"])
def test_label_smoothing_is_torchs_and_for_training_alone(name, tokenizer):
    model, method = make(name, tokenizer), objective(tokenizer)
    batch = inputs_of(batch_of(method, pairs()))
    with torch.no_grad():
        logits = model(**batch).logits
    own = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    method.label_smoothing = 0.1
    use_objective(model, method)
    torch.testing.assert_close(model.train()(**batch).loss, own, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        sums = model.eval()(**batch)
    torch.testing.assert_close(sums["loss"] / sums["count"], plain, rtol=1e-5, atol=1e-6)


def test_a_batch_counts_labels_and_fillers_have_none(tokenizer):
    method = objective(tokenizer)
    examples, report = method.examples(pairs(), "rows")
    draws = Draws(examples)
    batch = method([draws[0], {**draws[1], "draw": FILLER}])
    assert int(method.counts(batch)) == len(examples[0]["labels"])
    assert report.supervised == sum(len(ids) for ids in examples["labels"])
    assert report.tokens == report.supervised + sum(len(ids) for ids in examples["input_ids"])
    assert all(row["input_ids"][-1] == row["labels"][-1] == tokenizer.eos_token_id for row in examples)


def test_the_prefix_stands_before_every_source(tokenizer):
    [plain], [led] = (objective(tokenizer, source_prefix=p).sources(["hello"]) for p in ("", "say: "))
    assert tokenizer.decode(plain) == "hello</s>" and tokenizer.decode(led) == "say: hello</s>"
    found, _ = objective(tokenizer, source_prefix="say: ").examples(pairs(2), "rows")
    assert all(tokenizer.decode(ids).startswith("say: ") for ids in found["input_ids"])
    assert not any("say: " in tokenizer.decode(ids) for ids in found["labels"])
    model = make("T5", tokenizer)
    objective(tokenizer, source_prefix="say: ", num_beams=3).check_model(model)
    assert model.config.prefix == "say: " and model.generation_config.num_beams == 3


def test_a_special_token_that_a_text_spells_is_text(tokenizer):
    [ids] = objective(tokenizer).sources(["a</s>b<pad>"])
    assert tokenizer.decode(ids) == "a</s>b<pad></s>" and ids.count(tokenizer.eos_token_id) == 1


def test_what_is_cut_is_counted_and_keeps_its_end(tokenizer):
    method = objective(tokenizer, max_source_length=8, max_target_length=6, max_labels_lost=1.0)
    examples, report = method.examples(pairs(), "rows")
    whole, _ = objective(tokenizer).examples(pairs(), "rows")
    for column, most in (("input_ids", 8), ("labels", 6)):
        for cut, ids in zip(examples[column], whole[column], strict=True):
            assert cut == (ids if len(ids) <= most else [*ids[: most - 1], tokenizer.eos_token_id])
    lost = [sum(max(len(ids) - most, 0) for ids in whole[c]) for c, most in (("input_ids", 8), ("labels", 6))]
    assert (report.lost_tokens, report.lost_supervised) == (sum(lost), lost[1]) and lost[1]
    with pytest.raises(DataError, match=r"--max_target_length 6 would lose .* --max_labels_lost allows 5%"):
        objective(tokenizer, max_source_length=8, max_target_length=6).examples(pairs(), "rows")
    with pytest.raises(DataError, match=r"rows, row 0: .* longer than --max_source_length 8"):
        objective(tokenizer, max_source_length=8, truncation_mode="error").examples(pairs(), "rows")
    with pytest.raises(DataError, match=r"rows, row 0: .* longer than --max_target_length 6"):
        objective(tokenizer, max_target_length=6, truncation_mode="error").examples(pairs(), "rows")


def test_blank_rows_are_left_out_and_counted(tokenizer):
    rows = Dataset.from_dict({"source": ["a", " ", "b"], "target": ["c", "d", ""]})
    examples, report = objective(tokenizer).examples(rows, "rows")
    assert (len(examples), report.rows, report.sequences, report.unlabelled) == (1, 3, 1, 2)
    with pytest.raises(DataError, match="in every row source or target is blank"):
        objective(tokenizer).examples(rows.select([1, 2]), "rows")


def test_lengths_default_to_max_length_and_survive_run_yaml():
    args = Seq2SeqArguments(max_length=100, max_target_length=20)
    assert (args.max_source_length, args.max_target_length, args.max_length) == (100, 20, 100)
    again = Seq2SeqArguments(**{k: v for k, v in args.saved().items() if v is not None})
    assert again.saved() == args.saved()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"source_lang": "en"}, "--source_lang and --target_lang go together"),
        ({"packing": True}, "--packing is for causal models"),
        ({"padding_free": False}, "--padding_free is for causal models"),
        ({"chat_template_path": "chatml"}, "--chat_template_path is for causal models"),
    ],
)
def test_flags_without_a_meaning_are_refused(flags, message):
    with pytest.raises(ArgumentError, match=message):
        Seq2Seq.check(Seq2SeqArguments(**flags), 1)


def test_experts_of_others_are_refused(tokenizer):
    config = SwitchTransformersConfig(
        **T5, vocab_size=64, num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **ENDS
    )
    with pytest.raises(ModelError, match="without them"):
        objective(tokenizer).check_model(SwitchTransformersForConditionalGeneration(config))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["ours", "T5", "BART"])
def test_checkpoints_stay_their_own_class_unless_asked(name, own, tokenizer, tmp_path):
    make(name, tokenizer).save_pretrained(tmp_path)
    args = Seq2SeqArguments(model_name_or_path=str(tmp_path), own_model=own, max_length=64)
    model, new = build_model(args, "encoder-decoder", tokenizer)
    assert not new and isinstance(model, OurPair) == (own or name == "ours")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_an_end_that_the_model_does_not_know_ends_its_texts(tokenizer, tmp_path):
    model = MODELS["T5"](len(tokenizer) + 8)
    model.config.eos_token_id = model.generation_config.eos_token_id = 5
    model.save_pretrained(tmp_path)
    args = Seq2SeqArguments(model_name_or_path=str(tmp_path), max_length=64)
    assert build_model(args, "encoder-decoder", tokenizer)[0].generation_config.eos_token_id == [5, 1]


def test_a_causal_model_is_refused(tmp_path, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=600)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="could not be loaded"):
        build_model(Seq2SeqArguments(model_name_or_path=str(tmp_path)), "encoder-decoder", tokenizer)


# ---- rows ----


@pytest.mark.parametrize(
    "columns",
    [
        ("source", "target"),
        ("document", "summary"),
        ("article", "highlights"),
        ("dialogue", "summary"),
        ("text", "summary"),
    ],
)
def test_known_names_of_columns(columns):
    rows = Dataset.from_dict({columns[0]: ["a b", "c"], columns[1]: ["a", "c"], "id": [1, 2]})
    kind, found, unused = canonicalize(rows, "rows", ("pair",))
    assert kind == "pair" and unused == {"column 'id'": 1.0}
    assert found.remove_columns("source_row")[:] == {"source": ["a b", "c"], "target": ["a", "c"]}


def test_a_tokenizer_of_many_languages_marks_both(tmp_path):
    """mBART's: the language's token before a text, in the source and in the target, and forced when it writes."""
    letters = [(f"{space}{letter}", -1.0) for letter in "abcdefgh" for space in ("", "\u2581")]
    tokenizer = MBart50Tokenizer(vocab=[("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581", -2.0), *letters])
    flags = {"source_lang": "en_XX", "target_lang": "ro_RO"}
    method = objective(tokenizer, **flags)
    rows = translated(Dataset.from_dict({"translation": [{"en": "abc", "ro": "cba"}]}), ("en_XX", "ro_RO"), "rows")
    [row], _ = method.examples(rows, "rows")
    english, romanian = (tokenizer.convert_tokens_to_ids(language) for language in flags.values())
    assert (row["input_ids"][0], row["labels"][0]) == (english, romanian)
    assert row["input_ids"][-1] == row["labels"][-1] == tokenizer.eos_token_id
    model = M2M100ForConditionalGeneration(M2M100Config(**BART, vocab_size=len(tokenizer), decoder_start_token_id=2))
    method.check_model(model)
    assert model.generation_config.forced_bos_token_id == romanian
    assert model.generate(torch.tensor([row["input_ids"]]), max_new_tokens=2)[0, 1] == romanian
    with pytest.raises(ModelError, match="--target_lang xx: the tokenizer has no such language"):
        objective(tokenizer, **{**flags, "target_lang": "xx"})


def test_translations_by_language():
    rows = Dataset.from_dict({"translation": [{"de": "ja", "en": "yes"}, {"de": "nein", "en": "no"}], "id": ["x", "y"]})
    found = translated(rows, ("en", "de"), "rows")
    assert translated(found, ("en", "de"), "rows") is found
    assert found[:] == {"id": ["x", "y"], "source": ["yes", "no"], "target": ["ja", "nein"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "a", "target": None}, "rows, row 0: column 'target' must be a string, not null"),
        ({"source": ["a"], "target": "b"}, "rows, row 0: column 'source' must be a string, not list"),
        ({"translation": {"de": "ja", "en": "yes"}}, "--source_lang and --target_lang say which"),
        ({"question": "a"}, "source \\+ target"),
        ({"text": "a"}, "its rows are texts .* but sources with targets are needed"),
    ],
)
def test_malformed_rows(row, message):
    with pytest.raises(DataError, match=message):
        canonicalize(Dataset.from_list([row]), "rows", ("pair",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"translation": {"de": "ja", "en": "yes"}}, "rows, row 0: column 'translation' has no text in 'fr': de, en"),
        ({"translation": "ja"}, "has no text in 'fr': str 'ja'"),
    ],
)
def test_malformed_translations(row, message):
    with pytest.raises(DataError, match=message):
        translated(Dataset.from_list([row]), ("fr", "de"), "rows")


# ---- what it is compared with ----


def test_sentences_and_their_lead():
    text = 'He came. "Did he?" she asked. Yes!'
    assert sentences(text) == ["He came.", '"Did he?"', "she asked.", "Yes!"]
    assert sentences("\u4f60\u597d\u3002\u518d\u89c1\u3002") == ["\u4f60\u597d\u3002", "\u518d\u89c1\u3002"]
    assert lead_sentences(text, 1) == "He came." and lead_sentences("One  only", 3) == "One  only"
    assert lead_length(Dataset.from_dict({"target": ["A. B.", "A. B. C. D."]})) == 3


def test_the_comparison_has_baselines_and_both_models(tokenizer):
    """Summaries: the source's first sentence is compared with too, and a model that writes the targets wins."""
    said = [f"The {word} one is here, and it is {word}." for word in ("first", "second", "third", "fourth", "fifth")]
    long = Dataset.from_dict(
        {"source": [f"{text.upper()} And so it goes on and on, for as long." for text in said], "target": said}
    )
    method, model = objective(tokenizer, max_predict_samples=5), make("ours", tokenizer)
    method.write = lambda asked, sources: ["nothing"] * 5 if asked.name == "new" else said
    model.name, new = "trained", make("ours", tokenizer)
    new.name = "new"
    outcome = Outcome(
        model, Rows("pair", long, long), Examples(None, long), {"eval_loss": 1.0}, {"eval_loss": 2.0}, lambda: new
    )
    found = method.compare(outcome)
    assert list(found["BLEU"]) == ["copying", "first 1 sentence", "untrained", "trained"]
    assert [found[name]["trained"] for name in ("BLEU", "chrF")] == pytest.approx([100, 100])
    assert found["ROUGE-L"]["trained"] == found["ROUGE-L"]["first 1 sentence"] == 1.0 > found["ROUGE-L"]["copying"] > 0
    assert found["BLEU"]["first 1 sentence"] < 50 and found["BLEU"]["untrained"] == 0
    assert found["nats a target token"] == {"untrained": 2.0, "trained": 1.0}


def test_texts_come_back_in_the_order_of_their_sources(tokenizer):
    model, method = make("ours", tokenizer), objective(tokenizer, max_target_length=6)
    sources = ["b " * 20, "a", "c " * 9]
    assert method.write(model, sources) == [method.write(model, [source])[0] for source in sources]


def test_the_dry_run_shows_source_and_target(tokenizer):
    method = objective(tokenizer, source_prefix="say: ")
    rows = pairs(2)
    draws = Draws(method.examples(rows, "rows")[0])
    shown = [text.plain for text in method.show([draws[0], draws[1]])]
    assert f"say: {rows[0]['source']}</s>\nis to give\n{rows[0]['target']}</s>" in shown[0]
    report = method.examples(rows, "rows")[1]
    table = method.describe(SimpleNamespace(kind="pair"), Examples(None, rows, (report, report)))
    assert table is not None and table.row_count > 3
