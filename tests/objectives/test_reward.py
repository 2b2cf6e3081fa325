"""Reward models: the loss is TRL's on the same batch, the score is read where the conversation ends, and whoever loads
the model reads it there too."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import RewardConfig, RewardTrainer

from tests.model.helpers import scramble
from tests.text import samples
from tuner.data import sources
from tuner.data.builtin import BUILTIN
from tuner.data.draws import FILLER, Draws
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.evaluation.baselines.tfidf import tfidf_pairs
from tuner.evaluation.class_report import write_class_report
from tuner.loading.checkpoints import resolve
from tuner.loading.models import build_model
from tuner.loading.reward import RewardModel
from tuner.model import TunerDecoderConfig, TunerDecoderForSequenceClassification
from tuner.objectives.arguments import RewardArguments
from tuner.objectives.records import Predictions
from tuner.objectives.reward import Reward
from tuner.text.chat import encode_conversations
from tuner.text.chat_templates import BERT_TEMPLATE, CHATML_TEMPLATE
from tuner.text.load_tokenizer import load_pretrained_tokenizer

LENGTH = 96
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@cache
def pairs() -> Dataset:
    """Some with a margin, and every fifth a tie."""
    rows = list(load_splits("builtin:chitchat-pairs")[0].select(range(24)))
    made = [{**row, "tie": n % 5 == 4, "margin": 0.0 if n % 5 == 4 else n / 10} for n, row in enumerate(rows)]
    return canonicalize(Dataset.from_list(made), "pairs", ("ranked",))[1]


def model_of(seed: int = 0) -> Any:
    tokenizer = samples.small()
    torch.manual_seed(seed)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = TunerDecoderConfig(vocab_size=len(tokenizer), num_labels=1, **SHAPE, **ends)
    return scramble(TunerDecoderForSequenceClassification(config))


def objective_of(tokenizer: Any = None, **flags: Any) -> Reward:
    args = RewardArguments(max_length=LENGTH, max_labels_lost=1.0, **flags)
    return Reward(args, tokenizer or samples.small())


def draws_of(objective: Reward) -> list[dict[str, Any]]:
    examples, _ = objective.examples(pairs(), "pairs")
    draws = Draws(examples)
    return [draws[number] for number in range(len(draws))]


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


def mean_loss(objective: Reward, model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    total, count = objective.loss(model, **inputs_of(objective(rows)))
    return (total / count).sum()


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    other = {"chosen": "rejected", "rejected": "chosen"}
    return {**row, **{f"{one}_{name}": row[f"{two}_{name}"] for one, two in other.items() for name in ("input_ids",)}}


@pytest.mark.parametrize("centring", [None, 0.01])
@pytest.mark.parametrize("margins", [True, False])
def test_loss_and_gradient_are_those_of_trl(margins, centring, tmp_path):
    objective, model = objective_of(center_rewards_coefficient=centring), model_of().train()
    rows = [{**row, "margin": row["margin"] * margins} for row in draws_of(objective) if not row["tie"]][:8]
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = mean_loss(objective, model, rows)
    config = RewardConfig(output_dir=str(tmp_path), center_rewards_coefficient=centring, use_cpu=True, bf16=False)
    gather = SimpleNamespace(gather=lambda t: t, gather_for_metrics=lambda t: t)
    trainer = SimpleNamespace(accelerator=gather, args=config, model=model, _total_train_tokens=0)
    trainer._metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    sequences = [torch.tensor(row[f"{part}_input_ids"]) for part in ("chosen", "rejected") for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {"input_ids": pad(sequences, batch_first=True, padding_value=model.config.pad_token_id)}
    batch["attention_mask"] = pad([torch.ones_like(ids) for ids in sequences], batch_first=True)
    if margins:
        batch["margin"] = torch.tensor([float(row["margin"]) for row in rows])

    class Model:  # TRL hands the margin to the model
        training = True

        def __call__(self, margin: Any = None, **inputs: Any) -> Any:
            return model(**inputs)

    loss = RewardTrainer.compute_loss(trainer, Model(), batch)
    torch.testing.assert_close(ours, loss, rtol=0, atol=1e-5)
    found, wanted = (torch.autograd.grad(each, parameters) for each in (ours, loss))
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_eight_batches_of_one_are_one_of_eight():
    """Whatever is padded, and however far."""
    objective, model = objective_of(center_rewards_coefficient=0.1, label_smoothing=0.1), model_of().train()
    rows = draws_of(objective)[:8]
    assert len({len(row["chosen_input_ids"]) for row in rows}) > 1
    alone = [objective.loss(model, **inputs_of(objective([row]))) for row in rows]
    total, count = (torch.stack([torch.as_tensor(each[place]).sum() for each in alone]).sum() for place in (0, 1))
    assert count == 8
    torch.testing.assert_close(mean_loss(objective, model, rows), total / count)


def test_what_fills_a_batch_does_not_count():
    objective, model = objective_of(center_rewards_coefficient=0.1), model_of()
    rows = draws_of(objective)
    fillers = [{**row, "draw": FILLER} for row in rows[5:8]]
    found, wanted = (objective.sums(model, **inputs_of(objective(each))) for each in (rows[:4] + fillers, rows[:4]))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
    gradients = []
    for each in (rows[:4] + fillers, rows[:4]):
        model.zero_grad()
        mean_loss(objective, model.train(), each).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, msg=name)
    sums = objective.sums(model, **inputs_of(objective(fillers)))
    empty = {name: value.detach().numpy() for name, value in sums.items()}
    assert objective.metrics(empty) == {} and empty["loss"] == 0


def test_smoothing_is_the_loss_of_labels_that_are_wrong_so_often():
    rows, model = [row for row in draws_of(objective_of()) if not row["tie"]][:6], model_of()
    plain, smooth = objective_of(), objective_of(label_smoothing=0.2)
    right, wrong = mean_loss(plain, model, rows), mean_loss(plain, model, [swapped(row) for row in rows])
    torch.testing.assert_close(mean_loss(smooth, model, rows), 0.8 * right + 0.2 * wrong)


def test_a_tie_pulls_both_rewards_together():
    objective, model = objective_of(label_smoothing=0.1), model_of()
    tie = next(row for row in draws_of(objective) if row["tie"])
    loss = mean_loss(objective, model, [tie])
    torch.testing.assert_close(loss, mean_loss(objective, model, [swapped(tie)]))
    one, other = objective._rewards(model, **{"input_ids": objective([tie])["input_ids"]})
    gap = (one - other).squeeze()
    torch.testing.assert_close(loss, (-F.logsigmoid(gap) - F.logsigmoid(-gap)) / 2)
    same = {**tie, "rejected_input_ids": tie["chosen_input_ids"]}
    assert mean_loss(objective, model, [same]).item() == pytest.approx(np.log(2)) and loss > np.log(2) + 1e-4
    sums = objective.sums(model, **inputs_of(objective([tie])))
    assert sums["ranked"] == 0 and sums["right"] == 0 and sums["count"] == 1


def test_the_metrics_are_those_of_all_rewards():
    objective, model = objective_of(), model_of()
    rows = draws_of(objective)
    sums = [objective.sums(model, **inputs_of(objective(rows[at : at + 5]))) for at in range(0, len(rows), 5)]
    found = objective.metrics({name: sum(each[name] for each in sums).detach().numpy() for name in sums[0]})
    batch = objective(rows)
    rewards = model(batch["input_ids"]).logits.view(2, -1).detach().numpy()
    ranked = np.array([not row["tie"] for row in rows])
    gaps = (rewards[0] - rewards[1])[ranked]
    wanted = {"accuracy": (gaps > 0).mean(), "margin": gaps.mean(), "reward": rewards.mean()}
    wanted |= {"reward_deviation": rewards.std(), "loss": mean_loss(objective, model, rows).item()}
    assert found == {name: pytest.approx(float(value), abs=1e-5) for name, value in wanted.items()}


# ---- where the score is read ----


def saved(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's: its one special token ends a text, and no other could pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(samples.texts(), trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    found.chat_template = CHATML_TEMPLATE.replace("'<|im_end|>'", "eos_token").replace("'<|im_end|>\\n'", "'\\n'")
    return found


def base_of(case: str, folder: Path) -> str:
    """A checkpoint without a reward's head."""
    torch.manual_seed(0)
    tokenizer, ends = copy.deepcopy(samples.small()), {}
    if case == "pad is eos":
        tokenizer.pad_token = tokenizer.eos_token
        ends = {"pad_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    elif case == "nothing to pad with":
        tokenizer = bare_tokenizer()
    elif case == "encoder":
        tokenizer = AutoTokenizer.from_pretrained(resolve("builtin:minilm-l6")[0])
        tokenizer.chat_template = BERT_TEMPLATE
    if case == "encoder":
        model: Any = BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPE))
    elif case == "nothing to pad with":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, **ends))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SHAPE, **ends))
    return saved(folder, scramble(model), tokenizer)


@pytest.mark.parametrize("case", ["as ours", "pad is eos", "nothing to pad with", "encoder"])
def test_the_saved_folder_gives_the_score_that_was_trained(case, tmp_path):
    """In a plain call of transformers, one conversation at a time as its chat template writes it."""
    base = base_of(case, tmp_path / "base")
    tokenizer = load_pretrained_tokenizer(base, None, needs_end=False)
    model, new = build_model(RewardArguments(model_name_or_path=base, max_length=LENGTH), "reward", tokenizer)
    assert ("the token <|pad|>" in new) == (case == "nothing to pad with") and ("score" in new) == (case != "encoder")
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    scramble(model)
    objective = objective_of(tokenizer)
    rows = draws_of(objective)[:6]
    batch = objective(rows)
    trained = objective._rewards(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    folder = saved(tmp_path / "model", model, tokenizer)
    plain, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    whole = 0
    for column, row in enumerate(rows):
        source = pairs()[int(row["row"])]
        for line, part in enumerate(("chosen", "rejected")):
            ids = words.apply_chat_template(source["prompt"] + source[part], return_tensors="pt")["input_ids"]
            if ids.shape[1] > LENGTH:
                continue
            whole += 1
            output = plain(ids, output_hidden_states=True)
            assert output.logits.item() == pytest.approx(trained[line, column].item(), abs=1e-4), "another score"
            if case != "encoder":  # of the last token, whatever it is
                last = plain.score(plain.base_model(ids)[0][:, -1])
                assert last.item() == pytest.approx(output.logits.item(), abs=1e-4), "another place"
    assert whole > 6


def test_the_reward_of_a_converted_model_is_that_of_the_original(tmp_path):
    base, tokenizer = base_of("as ours", tmp_path), samples.small()
    theirs, ours = (
        build_model(RewardArguments(model_name_or_path=base, own_model=own), "reward", tokenizer)[0]
        for own in (False, True)
    )
    assert type(ours) is TunerDecoderForSequenceClassification is not type(theirs)
    with torch.no_grad():
        ours.score.weight.copy_(theirs.score.weight)
    objective = objective_of()
    rows = draws_of(objective)
    torch.testing.assert_close(mean_loss(objective, ours.train(), rows), mean_loss(objective, theirs.train(), rows))


def test_the_head_is_drawn_from_the_seed_and_kept_where_there_is_one(tmp_path):
    base, tokenizer = base_of("as ours", tmp_path / "base"), samples.small()

    def head(name: str, seed: int) -> tuple[torch.Tensor, str]:
        model, new = build_model(RewardArguments(model_name_or_path=name, seed=seed), "reward", tokenizer)
        model.save_pretrained(tmp_path / f"of {seed}")
        return model.score.weight.detach(), new

    one, again, other = head(base, 1)[0], head(base, 1)[0], head(base, 2)[0]
    assert torch.equal(one, again) and not torch.equal(one, other)
    kept, new = head(str(tmp_path / "of 1"), 3)
    assert torch.equal(kept, one) and not new


@pytest.mark.slow
def test_of_a_gguf_file_too():
    """The file is read once and kept; a head must not be kept with it."""
    heads = []
    for seed in (1, 2, 1):
        args = RewardArguments(model_name_or_path="builtin:smollm2-135m-instruct", seed=seed)
        model, new = build_model(args, "reward", samples.smollm2())
        assert new.endswith("these are new: score.")
        heads.append(model.score.weight.detach())
    assert torch.equal(heads[0], heads[2]) and not torch.equal(heads[0], heads[1])


def test_dropout_is_off_unless_asked_for(tmp_path):
    tokenizer = samples.small()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)
    base = saved(tmp_path, GPT2LMHeadModel(config), tokenizer)
    for off in (True, False):
        args = RewardArguments(model_name_or_path=base, disable_dropout=off)
        model = build_model(args, "reward", tokenizer)[0].train()
        ids = torch.arange(10, 40)[None]
        assert torch.equal(model(ids).logits, model(ids).logits) == off
        assert model.config.resid_pdrop == 0.1, "the saved configuration keeps it"
    with pytest.raises(ArgumentError, match="--dropout: a reward model is trained without"):
        RewardArguments(dropout=0.1)


# ---- the judge ----


@pytest.fixture
def judge(tmp_path):
    """An ensemble of two, over a template that writes on after the end token."""
    tokenizer = bare_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    for number in (0, 1):
        torch.manual_seed(number)
        config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, num_labels=1, **SHAPE)
        config.pad_token_id = tokenizer.pad_token_id
        model = AutoModelForSequenceClassification.from_config(config)
        saved(tmp_path / f"member-{number}", scramble(model, number), tokenizer)
    kept = {"members": ["member-0", "member-1"], "centres": [0.5, -0.25], "spread": 2.0}
    (tmp_path / "ensemble.json").write_text(json.dumps(kept))
    return tmp_path


PROMPTS = ["What is it?", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "Why?"]
COMPLETIONS = ["A thing.", "so long as that it is padded for once, is it?", "Because <|endoftext|> is text."]


def test_a_judge_gives_the_scores_of_plain_transformers(judge):
    alone = []
    for member in ("member-0", "member-1"):
        model = AutoModelForSequenceClassification.from_pretrained(judge / member)
        tokenizer = AutoTokenizer.from_pretrained(judge / member)
        ids = tokenizer.apply_chat_template(samples.talk(PROMPTS[0], COMPLETIONS[0]), return_tensors="pt")["input_ids"]
        found = RewardModel.load(str(judge / member)).score(PROMPTS[:1], COMPLETIONS[:1])
        assert found.item() == pytest.approx(model(ids).logits.item(), abs=1e-5)
        alone.append(RewardModel.load(str(judge / member), batch_size=2).score(PROMPTS, COMPLETIONS))
        one_by_one = RewardModel.load(str(judge / member), batch_size=1).score(PROMPTS, COMPLETIONS)
        torch.testing.assert_close(alone[-1], one_by_one, rtol=1e-4, atol=1e-5)
    moved = torch.stack(alone) - torch.tensor([0.5, -0.25])[:, None]
    wanted = moved.mean(dim=0) - 2 * moved.std(dim=0, correction=0)
    torch.testing.assert_close(RewardModel.load(str(judge)).score(PROMPTS, COMPLETIONS), wanted, rtol=1e-4, atol=1e-5)


def test_generated_tokens_have_the_score_of_their_text(judge):
    """They stop at the end token, and are padded on either side."""
    found = RewardModel.load(str(judge))
    turns = [samples.talk(PROMPTS[number], COMPLETIONS[number]) for number in (0, 2)]
    rows = [row["input_ids"] for row in encode_conversations(found.writer, turns)]
    assert found.tail and all(row[-len(found.tail) - 1 :] == [found.end, *found.tail] for row in rows)
    stopped = [row[: -len(found.tail)] for row in rows]
    wanted = found.score([PROMPTS[0], PROMPTS[2]], [COMPLETIONS[0], COMPLETIONS[2]])
    for left in (True, False):
        time = max(map(len, stopped))
        ids, mask = torch.full((2, time), 7), torch.zeros(2, time, dtype=torch.long)
        for number, row in enumerate(stopped):
            place = slice(time - len(row), time) if left else slice(len(row))
            ids[number, place], mask[number, place] = torch.tensor(row), 1
        torch.testing.assert_close(found.score_ids(ids, mask), wanted, rtol=1e-4, atol=1e-5)
    cut = found.score_ids(torch.tensor([stopped[0][:-1]]))
    assert cut.item() != pytest.approx(wanted[0].item(), abs=1e-3), "one that did not end is another"


def test_what_is_no_reward_model_is_refused(tmp_path):
    base = base_of("as ours", tmp_path / "base")
    with pytest.raises(ModelError, match=r"lacks weights of a LlamaForSequenceClassification: score.weight"):
        RewardModel.load(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with pytest.raises(ModelError, match="has 3 outputs, and a reward model one"):
        RewardModel.load(saved(tmp_path / "three", model, samples.small()))


# ---- rows, baselines, report ----


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def ranked(**more: Any) -> dict[str, Any]:
    kind, rows, unused = canonicalize(Dataset.from_list([{**PAIR, **more}] * 2), "pairs.jsonl", ("ranked",))
    assert kind == "ranked" and not unused
    return {name: rows[1][name] for name in ("margin", "tie")}


def test_margins_and_ties_are_read():
    assert ranked() == ranked(margin=None, tie=None) == {"margin": 0.0, "tie": False}
    assert ranked(margin=2) == {"margin": 2.0, "tie": False}
    assert ranked(margin=0.0, tie="true") == {"margin": 0.0, "tie": True}
    whole = {part: [{"role": "user", "content": "q"}, {"role": "assistant", "content": part}] for part in PAIR}
    del whole["prompt"]
    _, rows, _ = canonicalize(Dataset.from_list([{**whole, "margin": 0.5}]), "pairs.jsonl", ("ranked",))
    assert rows[0]["margin"] == 0.5 and rows[0]["prompt"] == [{"role": "user", "content": "q"}]
    kind, _, unused = canonicalize(Dataset.from_list([{**PAIR, "margin": 0.5}]), "pairs.jsonl", ("preference",))
    assert kind == "preference" and unused == {"column 'margin'": 1.0}, "DPO has no use for it, and says so"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"margin": "much"}, "column 'margin' must be a finite number, not str 'much'"),
        ({"margin": True}, "column 'margin' must be a finite number, not bool True"),
        ({"margin": float("nan")}, "column 'margin' must be a finite number, not float nan"),
        ({"margin": float("inf")}, "column 'margin' must be a finite number, not float inf"),
        ({"tie": "maybe"}, "column 'tie' must be true or false, not str 'maybe'"),
        ({"tie": 0.5}, "column 'tie' must be true or false, not float 0.5"),
        ({"tie": True, "margin": 0.5}, "column 'margin' is 0.5, but column 'tie' says that neither answer is better"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused(more, message):
    with pytest.raises(DataError, match=rf"^pairs\.jsonl, row 1: {message}"):
        rows = Dataset.from_list([{**PAIR, **dict.fromkeys(more)}, {**PAIR, **more}])
        canonicalize(rows, "pairs.jsonl", ("ranked",))


def test_two_answers_the_same_are_counted_as_in_dpo():
    rows = [PAIR, {**PAIR, "rejected": "good"}]
    _, report = objective_of().examples(canonicalize(Dataset.from_list(rows), "pairs", ("ranked",))[1], "pairs")
    assert report.identical == 1 and report.sequences == 2


def archive(folder: Path, ratings: dict[str, list[tuple[str, list[int]]]]) -> Path:
    """A source archive as the package's, with these sentences and ratings."""

    def add(files: tarfile.TarFile, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        files.addfile(info, io.BytesIO(content))

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as files:
        for name in ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets"):
            lines = list(enumerate(ratings.get(name, [])))
            text = "\n".join(f"{n}\t0.0\t{said}" for n, (said, _) in lines)
            rated = "\ufeff" * (name == "tweets") + "\n".join(f"{n}\t0.0\t1.0\t{given}" for n, (_, given) in lines)
            add(files, f"hutto_ICWSM_2014/{name}_GroundTruth.txt", text.encode())
            add(files, f"hutto_ICWSM_2014/{name}_anonDataRatings.txt", rated.encode())
    file = folder / "tuner" / BUILTIN["sentiment-pairs"][0]
    file.parent.mkdir()
    with tarfile.open(file, "w:gz") as files:
        folder_of = file.name.removesuffix(".tar.gz")
        add(files, f"{folder_of}/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return file


def test_pairs_of_rated_sentences(tmp_path, monkeypatch):
    tweets = [("glad", [2, 3, 4, 1]), ("sad", [-1, -2, 1, -3])]
    films = [("one", [1, 2]), ("other", [2, 1]), ("left over", [0, 0])]
    archive(tmp_path, {"tweets": tweets, "movieReviewSnippets": films})
    monkeypatch.setattr(sources, "HF_HOME", str(tmp_path))
    rows = {row["prompt"]: row for row in sources.load_rows("builtin:sentiment-pairs")}
    # Of 16 pairs of raters 15 say so, and one says neither.
    assert rows["Write a tweet."] == {
        "prompt": "Write a tweet.", "chosen": "glad", "rejected": "sad", "margin": 0.938, "tie": False
    }  # fmt: skip
    film = rows["Write a sentence about a film."]
    assert len(rows) == 2 and len({film["chosen"], film["rejected"]}) == 2
    if {film["chosen"], film["rejected"]} == {"one", "other"}:
        assert film["tie"] and film["margin"] == 0
    else:
        assert film["rejected"] == "left over" and film["margin"] == 1


def test_without_the_archive_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HF_HOME", str(tmp_path))
    wanted = f"pip download --no-deps --no-binary :all: --dest {tmp_path}/tuner vaderSentiment==3.3.2"
    with pytest.raises(DataError, match=wanted):
        load_splits("builtin:sentiment-pairs")


def test_no_sentence_of_the_rows_set_aside_is_learnt():
    if not Path(sources.HF_HOME, "tuner", BUILTIN["sentiment-pairs"][0]).is_file():
        pytest.skip("the source archive is not here")
    train, held_out = load_splits("builtin:sentiment-pairs")
    learnt, asked = ({*rows["chosen"], *rows["rejected"]} for rows in (train, held_out))
    assert len(train) > 11_000 and not learnt & asked
    assert len(learnt) + len(asked) == 2 * (len(train) + len(held_out)), "each is in one pair"


def test_words_alone_learn_which_is_better():
    train = [(f"good {n}", f"bad {n}") for n in range(20)]
    gaps = tfidf_pairs(train, [("good again", "bad again"), ("bad again", "good again"), ("again", "again")])
    assert gaps[0] > 0 and gaps[1] == pytest.approx(-gaps[0]) and gaps[2] == 0


def test_the_report_of_rewards(tmp_path):
    rng = np.random.default_rng(0)
    gaps = rng.normal(1, 1, 400)
    rewards = np.stack([gaps * 3, np.zeros(400)], axis=1)  # three times as sure as it may be
    lengths = np.stack([rng.integers(5, 9, 400), np.full(400, 6)], axis=1)
    texts = [f"{n} / worse" for n in range(400)]
    margins = rng.permutation(400) / 400
    given = Predictions(texts, rewards, lengths, ("chosen", "rejected"), "preference", margins=margins)
    found = write_class_report(given, tmp_path)
    right, longer = gaps > 0, lengths[:, 0] > 6
    assert found["accuracy"]["value"] == right.mean() and found["accuracy"]["method"] == "Wilson"
    assert found["accuracy where the better one is longer"]["value"] == right[longer].mean()
    shorter = lengths[:, 0] < 6
    assert found["accuracy where the better one is shorter"]["n"] == shorter.sum()
    thirds = {name: part for name, part in found.items() if "margin" in name}
    assert [part["n"] for part in thirds.values()] == [133, 133, 134]
    last = "accuracy where the margin is 0.665 or more"
    assert list(thirds)[-1] == last and thirds[last]["value"] == right[margins >= np.quantile(margins, 2 / 3)].mean()
    choices = np.concatenate([right[longer], ~right[shorter]])
    assert found["share of longer ones among the choices"]["value"] == choices.mean()
    assert found["log loss"] == pytest.approx(-np.log(1 / (1 + np.exp(-3 * gaps))).mean())
    assert found["temperature that fits best"] > 1 and found["calibration error"] > 0.01
    assert found["log loss, by the other half's temperature"] < found["log loss"]
    worst = np.argmin(gaps)
    assert f"{-3 * gaps[worst]:.3f} for the second, which is worse: `{worst} / worse`" in (
        tmp_path / "classes.md"
    ).read_text("utf-8")
