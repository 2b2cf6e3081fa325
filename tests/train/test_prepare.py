"""The steps of a recipe: what they refuse before anything is trained, and what a stream is made of."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.objectives.test_pretraining import model_of, tokenizer
from tests.recipes import ROOT
from tuner.config.arguments import RecipeArguments, parse_arguments
from tuner.errors import ArgumentError, CheckpointError, DataError, ModelError, TunerError
from tuner.evaluation.samples import prompts_of
from tuner.loading.models import build_model
from tuner.objectives.causal_lm import SFT
from tuner.objectives.registry import PRETRAINING
from tuner.optim.muon import muon_groups
from tuner.text.train_tokenizer import train_tokenizer
from tuner.train import prepare
from tuner.train.prepare import make_objective
from tuner.train.run import Run, check_folder, plain

Recipe = runpy.run_path(str(ROOT / "recipes" / "pretrain.py"))["PretrainArguments"]


def arguments(*flags: Any) -> Any:
    return parse_arguments(Recipe, [str(flag) for flag in flags])


def run_of(args: Any) -> Run[Any]:
    return Run(args, PRETRAINING[args.objective], None)  # type: ignore[arg-type]


def load_documents(args: Any) -> Any:
    return prepare.load_documents(run_of(args))


def make_examples(args: Any, rows: Any, objective: Any) -> Any:
    return prepare.make_examples(run_of(args), rows, objective)


def load_objective(args: Any, which: Any) -> Any:
    return PRETRAINING[args.objective](args, which)


def load_model(args: Any, which: Any) -> Any:
    """The model, once its method has looked at it."""
    model, new = build_model(args, PRETRAINING[args.objective].model, which)
    make_objective(run_of(args), which, model)
    print(new)
    return model


def texts_in(folder: Path, *texts: str) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


SENTENCES = [f"The {n} rivers of the north were {n * 7} miles long, and {n * 3} towns stood there." for n in range(40)]


# ---- refused before training ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "mlm+nsp", "--max_length", 4], "needs --max_length 5 or more"),
        (["--objective", "contrastive", "--max_length", 2], "needs --max_length 3 or more"),
        (["--objective", "denoise", "--max_length", 2], "needs --max_length 3 or more"),
        (["--objective", "mlm+nsp", "--per_device_train_batch_size", 1], "--per_device_train_batch_size 2 or more"),
        (["--objective", "contrastive", "--per_device_eval_batch_size", 1], "--per_device_eval_batch_size 2 or more"),
        (["--objective", "rtd", "--z_loss", 0.1], "--z_loss has no meaning for rtd"),
    ],
)
def test_what_an_objective_cannot_use(flags, message):
    args = arguments(*flags)
    with pytest.raises(ArgumentError, match=message):
        PRETRAINING[args.objective].check(args, processes=1)


@pytest.mark.parametrize("objective", ["clm", "mlm", "mlm+nsp", "rtd", "denoise", "contrastive"])
def test_the_shortest_length_is_enough(objective, tmp_path):
    file = texts_in(tmp_path, *("one two three\nfour five six" for _ in range(8)))
    least = {"mlm+nsp": 5, "contrastive": 3, "denoise": 3}.get(objective, 2)
    args = arguments("--objective", objective, "--max_length", least, "--dataset_name", file)
    made = load_objective(args, tokenizer(objective))
    examples = make_examples(args, load_documents(args), made)
    rows = [{**examples.train.with_format("numpy")[n], "row": n, "draw": n} for n in range(4)]
    assert int(made(rows)["tokens"].max()) <= least


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "contrastive", "--views", "dropout"], "a model with dropout"),
        (["--objective", "rtd", "--config_overrides", "num_local_experts=4"], "balances experts"),
        (["--objective", "denoise", "--config_overrides", "num_local_experts=4"], "balances experts"),
        (["--objective", "contrastive", "--config_overrides", "num_local_experts=4"], "balances experts"),
    ],
)
def test_what_a_model_lacks(flags, message):
    args = arguments(*flags)
    with pytest.raises(ModelError, match=message):
        load_model(args, tokenizer(args.objective))


def test_two_views_under_dropout():
    args = arguments("--objective", "contrastive", "--views", "dropout", "--dropout", 0.1)
    assert load_model(args, tokenizer("contrastive")).config.hidden_dropout == 0.1


def test_a_second_segment_gets_a_row_of_its_own(tmp_path, capsys):
    saved = model_of("mlm", type_vocab_size=1)
    saved.save_pretrained(tmp_path)
    args = arguments("--objective", "mlm+nsp", "--model_name_or_path", tmp_path, "--max_length", 32)
    model: Any = load_model(args, tokenizer("mlm"))
    table = model.model.embed_types.weight
    assert table.shape[0] == 2 and torch.equal(table[0], saved.model.embed_types.weight[0])
    assert "1 of embed_types" in capsys.readouterr().out


def test_muon_takes_the_matrices_of_any_models_blocks():
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=8))
    matrices, others, _ = muon_groups(model, 0.1)
    assert matrices["use_muon"] and len(matrices["params"]) == 2 * 4
    assert {id(p) for p in others["params"]} == {id(model.transformer.wte.weight), id(model.transformer.wpe.weight)}
    with pytest.raises(ArgumentError, match="Linear trains none"):
        muon_groups(torch.nn.Linear(2, 2), 0.1)
    with pytest.raises(ArgumentError, match="takes no --optim_args"):
        arguments("--optim", "muon", "--optim_args", "beta=3").to_training_arguments(use_cpu=True)


@pytest.mark.parametrize("changed", [["--objective", "mlm"], ["--streaming", "true"], ["--clean", "web"]])
def test_another_objective_is_another_run(changed, tmp_path):
    first = arguments("--output_dir", tmp_path)
    (tmp_path / "run.yaml").write_text(json.dumps(plain(first)), encoding="utf-8")
    more = ["--output_dir", tmp_path, "--resume_from_checkpoint", "true"]
    check_folder(arguments(*more, "--max_minutes", 3))
    with pytest.raises(CheckpointError, match="another run"):
        check_folder(arguments(*more, *changed))


# ---- said before training ----


def test_columns_that_are_not_used_are_said(tmp_path, capsys):
    rows = [{"instruction": "q", "output": "a", "score": n} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = RecipeArguments(dataset_name=str(tmp_path / "rows.jsonl"))
    prepare.load_rows(Run(args, SFT, None))  # type: ignore[arg-type]
    assert "rows.jsonl: not used are column 'score' (100 % of the rows)." in capsys.readouterr().out


def test_a_tokenizer_that_does_not_know_the_texts_is_said(tmp_path, capsys):
    train_tokenizer(SENTENCES, "wordpiece", 200, "mlm").save_pretrained(tmp_path / "english")
    for texts, said in ((["ภาษาไทยไม่เว้นวรรคระหว่างคำ"] * 8, True), (SENTENCES, False)):
        flags = ["--objective", "mlm", "--dataset_name", texts_in(tmp_path, *texts)]
        args = arguments(*flags, "--tokenizer_name_or_path", tmp_path / "english")
        prepare.load_tokenizer(run_of(args), load_documents(args))
        assert ("does not know" in capsys.readouterr().out) == said


# ---- cleaning ----


def test_short_documents_are_cleaned_without_looking_for_them(tmp_path, capsys):
    file = texts_in(tmp_path, *(f"line {n}\u200b" for n in range(20)), "line 1", "line 2")
    rows = load_documents(arguments("--clean", "light", "--dataset_name", file, "--test_split_size", 4))
    assert "No validation document has 13 words" in capsys.readouterr().out
    assert len(rows.train) + len(rows.eval) < 22, "repeated ones are gone"
    assert not any("\u200b" in text for text in [*rows.train["text"], *rows.eval["text"]])


def test_light_cleaning_keeps_what_is_long(tmp_path):
    long = " ".join(f"word{n}" for n in range(100_001))
    file = texts_in(tmp_path, *SENTENCES, long, long + " again")
    rows = load_documents(arguments("--clean", "light", "--dataset_name", file, "--test_split_size", 5))
    kept = [text for split in (rows.train, rows.eval) for text in split["text"]]
    assert any(len(text) > 500_000 for text in kept)


def test_what_cleaning_leaves_nothing_of_is_not_validated_on(tmp_path):
    file = texts_in(tmp_path, *SENTENCES, *["\u200b"] * 10)
    rows = load_documents(arguments("--clean", "light", "--dataset_name", file, "--test_split_size", 20))
    assert 10 <= len(rows.eval) < 20 and all(rows.eval["text"])


# ---- streams ----


def streamed(objective: str, file: Path, *flags: Any) -> Any:
    how = ["--streaming", "true", "--max_steps", 5, "--test_split_size", 8, "--shuffle_buffer", 1]
    return arguments("--objective", objective, "--dataset_name", file, *how, *flags)


def blocks_of(args: Any, which: Any, count: int) -> tuple[Any, list[dict[str, Any]]]:
    objective = load_objective(args, which)
    stream = iter(make_examples(args, load_documents(args), objective).train)
    return objective, [next(stream) for _ in range(count)]


@pytest.mark.parametrize("objective", ["clm", "mlm", "rtd", "denoise", "infilling"])
def test_batches_of_a_stream_can_be_laid_together(objective, tmp_path):
    """As accelerate does for several processes, and for one too: every tensor has rows, all of one width."""
    kind, _, corruption = ("denoise", "", "infilling") if objective == "infilling" else (objective, "", "spans")
    args = streamed(kind, texts_in(tmp_path, *SENTENCES), "--max_length", 48, "--corruption", corruption)
    made, rows = blocks_of(args, tokenizer(kind), 32)
    batches = [made(rows[at : at + 4]) for at in range(0, 32, 4)]
    assert all(batch.keys() == batches[0].keys() for batch in batches)
    for name in batches[0]:
        assert torch.cat([batch[name] for batch in batches]).shape[0] % 8 == 0


def test_one_token_for_beginning_and_end_stands_once(tmp_path):
    which: Any = tokenizer("clm")
    marks = dict.fromkeys(("bos_token", "eos_token"), which.eos_token)
    both = PreTrainedTokenizerFast(tokenizer_object=which.backend_tokenizer, pad_token=which.pad_token, **marks)
    args = streamed("clm", texts_in(tmp_path, *SENTENCES), "--max_length", 64)
    objective, rows = blocks_of(args, both, 10)
    tokens = np.concatenate([row["input_ids"] for row in rows])
    ends = np.flatnonzero(tokens == both.eos_token_id)
    assert len(ends) > 5 and (np.diff(ends) > 1).all()
    batch = objective(rows)
    learnt = (batch["labels"] != -100).sum() / len(tokens)
    assert learnt > 0.9, "of each document all but its first token"


def test_a_folders_test_file_is_validated_on(tmp_path):
    for name, texts in (("train", SENTENCES[:20]), ("test", SENTENCES[20:])):
        texts_in(tmp_path, *texts).rename(tmp_path / f"{name}.jsonl")
    rows = load_documents(streamed("clm", tmp_path))
    assert list(rows.eval["text"]) == SENTENCES[20:28]
    assert [row["text"] for row in rows.train] == SENTENCES[:20]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--packing", "false"], "leave out --packing"),
        (["--truncation_mode", "error"], "leave out --packing"),
        (["--test_split_size", 40], "would set all of them aside"),
    ],
)
def test_what_a_stream_cannot_do(flags, message, tmp_path):
    with pytest.raises(TunerError, match=message):
        load_documents(streamed("clm", texts_in(tmp_path, *SENTENCES), *flags))


def test_a_stream_that_cleaning_leaves_nothing_of(tmp_path):
    args = streamed("mlm", texts_in(tmp_path, *SENTENCES), "--clean", "web", "--max_length", 16)
    with pytest.raises(DataError, match="not one token is in what cleaning leaves"):
        blocks_of(args, tokenizer("mlm"), 1)


# ---- samples ----


def test_a_blank_text_is_no_prompt():
    rows = Dataset.from_dict({"text": ["", "  ", "a word and more", "another word"]})
    found = prompts_of(rows, "text", tokenizer("clm"), count=2)
    assert [shown for shown, _, _ in found] == ["a word and more", "another word"]


def test_a_conversation_that_the_assistant_opens_is_no_prompt():
    turns = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "hi"}]
    rows = Dataset.from_list([{"messages": turns}, {"messages": [*turns[::-1]]}])
    [(shown, reference, _)] = prompts_of(rows, "messages", tokenizer("clm"))
    assert (shown, reference) == ("hi", "hello")
