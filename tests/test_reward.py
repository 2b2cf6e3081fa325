"""`recipes/reward.py` as its users run it: it learns, tells what it is beside, continues to the same bits, and what it
saved is a judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tuner.model  # noqa: F401
from tests.recipes import (
    NANO,
    assert_same_run,
    equal,
    eval_losses_of,
    launch_recipe,
    losses_of,
    metrics_of,
    run_recipe,
)
from tests.text.samples import talk
from tuner.loading.reward import RewardModel

pytestmark = pytest.mark.slow

STEPS = ["--max_length", "64", "--test_split_size", "30", "--logging_steps", "3", "--save_steps", "4"]
STEPS += ["--max_steps", "12", "--per_device_train_batch_size", "8", "--learning_rate", "2e-3", "--bf16", "false"]
STEPS += ["--center_rewards_coefficient", "0.01"]
NEW = [*NANO, "--vocab_size", "400"]
# float32, 12 steps, logged every 3, seed 42. Other CPUs sum in another order: hence a tolerance, but a small one.
PINNED = [0.7939, 0.2438, 0.3150, 0.2534]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which of two answers agrees: the words say so, the length does not. Every tenth is a tie."""
    rows = []
    for n in range(150):
        yes, no = (f"{word} {'really ' * (n % 3)}number {n % 7}" for word in ("yes", "no"))
        row: dict[str, Any] = {"prompt": f"say {n % 11}", "chosen": yes, "rejected": no + " indeed" * (n % 2)}
        rows.append({**row, "margin": 0.0 if n % 10 == 9 else n % 4 / 4, "tie": n % 10 == 9})
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def reward(*flags: Any, **how: Any) -> Any:
    done = run_recipe(*flags, recipe="reward.py", **how)
    assert "kill_at" in how or done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], Any]:
    folder = tmp_path_factory.mktemp("reward") / "run"
    flags = [*NEW, "--dataset_name", pairs, *STEPS]
    return folder, flags, reward(*flags, "--output_dir", folder)


def test_the_losses_are_the_pinned_ones(whole: Any) -> None:
    assert losses_of(whole[0]) == pytest.approx(PINNED, rel=1e-3)
    first, last = eval_losses_of(whole[0])
    assert last < first - 0.1


def test_what_is_written(whole: Any) -> None:
    folder, _, done = whole
    found = metrics_of(folder)
    who = found["comparison"]["accuracy"]
    assert set(who) == {"chance", "longer", "TF-IDF + logistic", "untrained", "trained"}
    assert who["trained"] > who["untrained"] and who["TF-IDF + logistic"] == 1 and who["chance"] == 0.5
    assert ("The model loses to TF-IDF + logistic" in done.stdout) == (who["trained"] < 1)
    figures, ties = found["classes"], 30 - found["classes"]["accuracy"]["n"]
    assert figures["accuracy"]["value"] == pytest.approx(who["trained"]) and ties > 0
    assert figures["accuracy"]["low"] < figures["accuracy"]["value"] <= figures["accuracy"]["high"]
    page = (folder / "classes.md").read_text(encoding="utf-8")
    assert f"{ties} ties are left out" in page and "share of longer ones among the choices" in page
    shorter = found["comparison"]["accuracy where the better one is shorter"]
    assert shorter["longer"] == 0 and shorter["trained"] == pytest.approx(
        figures["accuracy where the better one is shorter"]["value"]
    )
    assert {"loss", "accuracy", "margin", "reward", "reward_deviation"} <= found["eval"].keys()


def test_the_saved_folder_judges_in_plain_transformers(whole: Any) -> None:
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(whole[0]),
        AutoTokenizer.from_pretrained(whole[0]),
    )
    judge = RewardModel.load(str(whole[0]))
    answers = ["yes number 3", "no number 3"]
    plain = [
        model(tokenizer.apply_chat_template(talk("say 4", each), return_tensors="pt")["input_ids"]) for each in answers
    ]
    found = judge.score(["say 4"] * 2, answers)
    torch.testing.assert_close(found, torch.tensor([each.logits.item() for each in plain]), rtol=1e-4, atol=1e-5)
    assert found[0] > found[1]


def test_killed_it_goes_on_to_the_same_bits(whole: Any, tmp_path: Path) -> None:
    folder, flags, _ = whole
    again = [*flags, "--output_dir", tmp_path, "--resume_from_checkpoint", "true"]
    assert reward(*again, kill_at="step:6").returncode == -9
    reward(*again)
    assert_same_run(folder, tmp_path)
    assert metrics_of(folder)["comparison"] == metrics_of(tmp_path)["comparison"]


def test_eight_micro_batches_of_one_are_one_of_eight(whole: Any, tmp_path: Path) -> None:
    folder, flags, _ = whole
    reward(*flags, "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "8", "--output_dir", tmp_path)
    assert losses_of(tmp_path) == pytest.approx(losses_of(folder), abs=1e-5)


def test_two_processes_are_one(whole: Any, tmp_path: Path) -> None:
    folder, flags, _ = whole
    few = ["--per_device_train_batch_size", "4", "--output_dir", tmp_path]
    done = launch_recipe(2, *flags, *few, recipe="reward.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses_of(tmp_path) == pytest.approx(losses_of(folder), abs=1e-5)
    assert eval_losses_of(tmp_path) == pytest.approx(eval_losses_of(folder), abs=1e-5)
    assert metrics_of(tmp_path)["comparison"]["accuracy"] == metrics_of(folder)["comparison"]["accuracy"]


def test_an_adapter_with_its_head_merged_and_continued(whole: Any, pairs: Path, tmp_path: Path) -> None:
    """Over a model without a reward's head, so that the adapter alone has it."""
    base = tmp_path / "base"
    sft = [*NEW, "--dataset_name", pairs.with_name("chats.jsonl"), "--max_steps", "2", "--max_length", "64"]
    rows = [{"prompt": f"say {n}", "completion": f"yes number {n}"} for n in range(40)]
    pairs.with_name("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_recipe(*sft, "--output_dir", base)
    assert done.returncode == 0, done.stderr[-2000:]
    flags = ["--model_name_or_path", base, "--dataset_name", pairs, *STEPS, "--use_peft", "--merge"]
    flags += ["--learning_rate", "1e-2"]
    done = reward(*flags, "--output_dir", tmp_path / "whole")
    assert "these are new: score" in done.stdout and "Merged in" in done.stdout
    again = [*flags, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "true"]
    assert reward(*again, kill_at="step:6").returncode == -9
    reward(*again)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert equal(ours, theirs) and any("score" in name for name in ours)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "killed")
    adapter, merged = (RewardModel.load(str(tmp_path / "whole" / part)) for part in ("", "merged"))
    asked = (["say 4", "say 5"], ["yes number 3", "no number 3 indeed"])
    torch.testing.assert_close(adapter.score(*asked), merged.score(*asked), rtol=1e-3, atol=1e-4)
    gap = adapter.score(*asked).diff().abs()
    assert gap > 0.01, "a head that was left at random would not be this one"


def test_an_ensemble_is_killed_and_goes_on_to_the_same_bits(pairs: Path, tmp_path: Path) -> None:
    flags = [*NEW, "--dataset_name", pairs, *STEPS, "--max_steps", "6", "--ensemble", "2"]
    flags += ["--eval_strategy", "no", "--resume_from_checkpoint", "true", "--output_dir"]
    done = reward(*flags, tmp_path / "whole")
    assert "Member 2 of 2, --seed 43." in done.stdout
    assert reward(*flags, tmp_path / "killed", kill_at="step:5").returncode == -9
    assert not (tmp_path / "killed" / "ensemble.json").exists()
    reward(*flags, tmp_path / "killed")
    files = [f"member-{number}/model.safetensors" for number in (0, 1)]
    one, other = (load_file(tmp_path / "whole" / file) for file in files)
    assert not equal(one, other), "seeds differ"
    for file in files:
        assert equal(load_file(tmp_path / "whole" / file), load_file(tmp_path / "killed" / file)), file
    found, again = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed"))
    assert found == again
    who = found["comparison"]["accuracy"]
    members = [metrics_of(tmp_path / "whole" / f"member-{n}")["comparison"]["accuracy"]["trained"] for n in (0, 1)]
    assert [who["member-0"], who["member-1"]] == pytest.approx(members) and set(who) >= {"mean", "ensemble"}
    kept = json.loads((tmp_path / "whole" / "ensemble.json").read_text())
    judges = [RewardModel.load(str(tmp_path / "whole" / name)) for name in ("", "member-0", "member-1")]
    scores = [judge.score(["say 4"], ["yes number 3"]).item() for judge in judges]
    moved = torch.tensor(scores[1:]) - torch.tensor(kept["centres"])
    assert scores[0] == pytest.approx((moved.mean() - moved.std(correction=0)).item(), abs=1e-5)
    done = reward(*flags[:-5], "--ensemble", "1", "--output_dir", tmp_path / "whole", kill_at="step:99")
    assert done.returncode == 2 and "holds an ensemble: choose another --output_dir" in done.stderr


def test_the_dry_run_shows_both_answers(whole: Any, tmp_path: Path) -> None:
    done = reward(*whole[1], "--ensemble", "3", "--output_dir", tmp_path / "none", "--dry_run")
    for line in ("Example 0, chosen", "Example 0, rejected", "Member 1 of 3", "feed-forward"):
        assert line in done.stdout, line
    assert "Member 2" not in done.stdout and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"margin": "wide"}, "column 'margin' must be a finite number, not str 'wide'"),
        ({"tie": "perhaps"}, "column 'tie' must be true or false, not str 'perhaps'"),
        ({"rejected": None}, "column 'rejected' must be a list of turns or a string, not null"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    for name, rows in (("train", [good, {**good, **row}]), ("test", [good, good])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    done = run_recipe(*NEW, "--dataset_name", tmp_path, "--output_dir", tmp_path / "run", recipe="reward.py")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: {tmp_path}" in done.stderr and "row 1" in done.stderr and message in done.stderr, done.stderr
