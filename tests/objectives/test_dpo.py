"""Preferences: losses are TRL's on the same batch, the reference is the model as it began, and padding has no say."""

from __future__ import annotations

import copy
import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from tests.model.helpers import scramble
from tests.recipes import NANO, metrics_of, run_recipe
from tests.text import samples
from tuner.data.draws import FILLER, Draws
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import ArgumentError, DataError
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.objectives.arguments import PreferenceArguments
from tuner.objectives.dpo import DPO
from tuner.objectives.records import Layout

LENGTH = 96


@cache
def pairs() -> Dataset:
    rows = load_splits("builtin:chitchat-pairs")[0].select(range(24))
    return canonicalize(rows, "pairs", ("preference",))[1]


def model_of(seed: int = 0) -> Any:
    tokenizer = samples.small()
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return scramble(TunerDecoderForCausalLM(TunerDecoderConfig(vocab_size=len(tokenizer), **shape, **ends)))


def objective_of(layout: Layout | None = None, **flags: Any) -> DPO:
    args = PreferenceArguments(max_length=LENGTH, max_labels_lost=1.0, **flags)
    return DPO(args, samples.small(), layout or Layout(chunked_loss=True))


def examples_of(objective: DPO, reference: Any = None) -> list[dict[str, Any]]:
    """Draws with the reference's numbers."""
    examples, _ = objective.examples(pairs(), "pairs")
    found = objective.reference(reference or model_of(), examples, 5)
    draws = Draws(examples.add_column("reference", found))
    return [draws[number] for number in range(len(draws))]


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


def mean_loss(objective: DPO, model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    total, count = objective.loss(model, **inputs_of(objective(rows)))
    return (total / count).sum()


def theirs(kind: Any, config: Any, batch: dict[str, Any], beta: float, **flags: Any) -> torch.Tensor:
    """The loss that TRL's trainer computes of a batch; the trainer itself is not built, for it would tokenize again."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda t: t, gather_for_metrics=lambda t: t, unwrap_model=lambda m: m
    )
    trainer = SimpleNamespace(accelerator=accelerator, args=config, **flags)
    trainer._metrics = {mode: __import__("collections").defaultdict(list) for mode in ("train", "eval")}
    trainer._total_train_tokens = 0
    trainer.beta, trainer.use_liger_kernel = beta, False
    for name in ("_compute_kl_logps",):
        if hasattr(kind, name):
            setattr(trainer, name, lambda *a, name=name: getattr(kind, name)(trainer, *a))
    return kind._compute_loss(trainer, flags["model"], batch, return_outputs=False)


def their_batch(rows: list[dict[str, Any]], parts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    sequences = [row[f"{part}_input_ids"] for part in parts for row in rows]
    labels = [row[f"{part}_labels"] for part in parts for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(s) for s in sequences], batch_first=True)
    mask = pad([torch.ones(len(s), dtype=torch.long) for s in sequences], batch_first=True)
    learnt = pad([torch.tensor(one != -100).long() for one in labels], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": learnt}


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_the_loss_is_that_of_trl(loss_type, chunked, tmp_path):
    objective = objective_of(Layout(chunked_loss=chunked), loss_type=loss_type, beta=0.3)
    rows, policy, reference = examples_of(objective), model_of(seed=1), model_of()
    ours = mean_loss(objective, policy.train(), rows[:6])
    config = DPOConfig(output_dir=str(tmp_path), loss_type=[loss_type], beta=0.3, use_cpu=True, report_to="none")
    flags = {
        **{"model": policy, "ref_model": reference, "ld_alpha": None, "aux_loss_enabled": False},
        **{"precompute_ref_logps": False, "f_divergence_type": "reverse_kl", "use_weighting": False},
        **{"loss_types": [loss_type], "loss_weights": [1.0]},
    }
    loss = theirs(DPOTrainer, config, their_batch(rows[:6], ("chosen", "rejected")), 0.3, **flags)
    torch.testing.assert_close(ours, loss, rtol=0, atol=1e-5)


def test_the_loss_of_unpaired_rows_is_that_of_trl(tmp_path):
    objective = objective_of(loss_type="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    rows, policy, reference = examples_of(objective), model_of(seed=1), model_of()
    some = [*rows[:3], *rows[-3:]]
    assert [bool(row["label"]) for row in some] == [True] * 3 + [False] * 3
    ours = mean_loss(objective, policy.train(), some)
    batch = their_batch(some, ("chosen",)) | {"label": torch.tensor([bool(row["label"]) for row in some])}
    batch |= {f"KL_{name}": value for name, value in their_batch(some, ("rejected",)).items()}
    config = KTOConfig(output_dir=str(tmp_path), beta=0.3, use_cpu=True, report_to="none", bf16=False)
    flags = {
        **{"model": policy, "ref_model": reference, "calculate_KL": True, "aux_loss_enabled": False},
        **{"precompute_ref_logps": False, "loss_type": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.5},
    }
    torch.testing.assert_close(ours, theirs(KTOTrainer, config, batch, 0.3, **flags), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "kto"])
def test_joined_rows_have_the_loss_of_padded_ones(loss_type):
    padded, joined = (objective_of(Layout(padding_free=joins), loss_type=loss_type) for joins in (False, True))
    rows, policy = examples_of(padded), model_of(seed=1).train()
    torch.testing.assert_close(mean_loss(joined, policy, rows[:7]), mean_loss(padded, policy, rows[:7]))


def test_at_the_start_the_model_is_its_reference():
    objective = objective_of()
    rows = examples_of(objective)
    sums = objective.sums(model_of(), **inputs_of(objective(rows[:8])))
    torch.testing.assert_close(sums["loss"] / sums["count"], torch.tensor(2.0).log(), rtol=0, atol=1e-6)
    assert sums["margin"].abs() < 1e-4


def test_the_gradient_is_that_of_the_formula():
    objective = objective_of(beta=0.5)
    rows, policy = examples_of(objective)[:4], model_of(seed=1).train()
    names, parameters = zip(*policy.named_parameters(), strict=True)
    found = torch.autograd.grad(mean_loss(objective, policy, rows), parameters)

    def log_probability(row: dict[str, Any], part: str) -> torch.Tensor:
        ids, labels = (torch.tensor(row[f"{part}_{name}"])[None] for name in ("input_ids", "labels"))
        losses = F.cross_entropy(policy(ids).logits[0, :-1], labels[0, 1:], reduction="sum")
        return -losses - row["reference"][("chosen", "rejected").index(part)]

    plain = torch.stack(
        [-F.logsigmoid(0.5 * (log_probability(r, "chosen") - log_probability(r, "rejected"))) for r in rows]
    ).mean()
    for name, one, other in zip(names, found, torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(one, other.to(one), rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("loss_type", ["sigmoid", "kto"])
def test_what_fills_a_batch_does_not_count(loss_type):
    objective = objective_of(loss_type=loss_type)
    rows, policy = examples_of(objective), model_of(seed=1)
    fillers = [{**row, "draw": FILLER} for row in rows[5:7]]
    found, wanted = (objective.sums(policy, **inputs_of(objective(each))) for each in (rows[:4] + fillers, rows[:4]))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("start", [True, "pissa", "prompt"], ids=str)
def test_under_a_new_adapter_the_reference_is_the_model_without_it(start):
    """Some adapters begin with a part of the weights, which then lack it: those alone are no reference. A prompt that
    is to be learnt is something from its beginning."""
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    objective, base = objective_of(), model_of()
    examples, _ = objective.examples(pairs(), "pairs")
    plain = objective.reference(base, examples, 4)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=start)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = get_peft_model(copy.deepcopy(base), prompt if start == "prompt" else lora)
    if start == "pissa":
        with adapted.disable_adapter():
            assert not np.allclose(objective.reference(adapted, examples, 4), plain, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(objective.reference(adapted, examples, 4), plain, rtol=1e-4, atol=1e-3)


def test_smoothing_of_tokens_labels_is_refused():
    args = PreferenceArguments()
    DPO.check(args, 1)
    args.extra["label_smoothing_factor"] = 0.1
    with pytest.raises(ArgumentError, match="--label_smoothing_factor has no meaning for dpo"):
        DPO.check(args, 1)


def test_unpaired_rows_are_for_kto():
    rows = [{"prompt": "hello", "completion": text, "label": text == "hi"} for text in ("hi", "no", "hi", "go")]
    _, unpaired, _ = canonicalize(Dataset.from_list(rows), "rows", ("unpaired",))
    with pytest.raises(DataError, match="unpaired rows are for kto"):
        objective_of().examples(unpaired, "rows")
    examples, report = objective_of(loss_type="kto").examples(unpaired, "rows")
    assert list(examples["label"]) == [True, False, True, False] and report.sequences == 4


@pytest.mark.slow
def test_the_recipe_learns_and_reports(chats, tmp_path):
    rows = load_splits("builtin:chitchat-pairs")[0].select(range(60))  # learnt by heart
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sft = ["--dataset_name", chats, "--vocab_size", "512", "--max_length", "128", "--max_steps", "2"]
    base = tmp_path / "base"
    done = run_recipe(*sft, *NANO, "--max_labels_lost", "1", "--test_split_size", "6", "--output_dir", base)
    assert done.returncode == 0, done.stderr[-2000:]
    flags = ["--model_name_or_path", base, "--dataset_name", path, "--max_length", "128", "--max_labels_lost", "1"]
    flags += [
        "--max_steps",
        "20",
        "--learning_rate",
        "3e-3",
        "--test_split_size",
        "20",
        "--output_dir",
        tmp_path / "run",
    ]
    done = run_recipe(*flags, recipe="dpo.py")
    assert done.returncode == 0, done.stderr[-2000:]
    found = metrics_of(tmp_path / "run")
    assert found["log"][0]["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    trained = [entry["loss"] for entry in found["log"] if "loss" in entry]
    assert trained[-1] < 0.68, trained
    assert {"chance", "likelier", "longer", "trained"} <= found["comparison"]["examples judged right"].keys()
    plan = run_recipe(*flags[:-1], tmp_path / "none", "--dry_run", recipe="dpo.py")
    assert plan.returncode == 0, plan.stderr[-2000:]
    assert "Training row" in plan.stdout and not (tmp_path / "none").exists()
