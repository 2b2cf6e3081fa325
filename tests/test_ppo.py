"""`recipes/ppo.py` as its user runs it: killed and continued, on two processes, with rewards that fail."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.hub.test_push import PUSHING
from tests.processes import ROOT, run_python
from tests.recipes import equal, launch_recipe, log_of, metrics_of, run_recipe
from tests.rl.models import policy, tiny_tokenizer

REWARDS = Path(__file__).parent / "rl" / "rewards_for_tests.py"
FLAGS = [
    *("--response_length", "8", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"),
    *("--learning_rate", "1e-3", "--max_steps", "6", "--save_steps", "2", "--eval_steps", "3"),
    *("--test_split_size", "4", "--use_cpu", "true", "--temperature", "1.0"),
]
# Of a log line these depend on the clock.
CLOCK = ("time/", "tokens_per_second/", "eps")
CHAT = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + eos_token }}{% endfor %}"
SEPARATE = ["--value", "separate", "--value_model_path"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and prompts in a file."""
    from tests.rl.models import scorer

    folder = tmp_path_factory.mktemp("parts")
    for name, model in (("model", policy(spread=0.05)), ("scorer", scorer())):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "chat.jinja").write_text(CHAT, encoding="utf-8")
    judge = copy.deepcopy(tiny_tokenizer())
    judge.chat_template = CHAT
    scorer().save_pretrained(folder / "judge")
    judge.save_pretrained(folder / "judge")
    rows = [{"text": f"{a} + {b} =", "bonus": a / 10} for a in range(6) for b in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def flags(parts: Path, folder: Path, *more: Any, reward: str = "digits") -> list[Any]:
    named = ["--model_name_or_path", parts / "model", "--dataset_name", parts / "prompts.jsonl"]
    rewards = ["--reward_funcs", f"{REWARDS}:{reward}"] if reward else []
    return [*FLAGS, *named, *rewards, "--output_dir", folder, *more]


def ppo(parts: Path, folder: Path, *more: Any, reward: str = "digits", **how: Any) -> Any:
    return run_recipe(*flags(parts, folder, *more, reward=reward), recipe="ppo.py", **how)


def log(checkpoint: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if not k.startswith(CLOCK)} for entry in log_of(checkpoint)]


def test_a_run(parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = ppo(parts, folder)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = metrics_of(folder)
    assert metrics["steps"] == 6 and set(metrics["comparison"]["reward"]) == {"untrained", "trained"}
    for name in ("ppo.png", "samples.md", "completions.jsonl", "run.yaml", "model.safetensors"):
        assert (folder / name).stat().st_size, name
    assert "Reward functions are given the columns bonus." in done.stdout
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size
    before = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}
    again = ppo(parts, folder)  # the folder holds a run
    assert again.returncode == 2 and "already holds a run" in again.stderr
    finished = ppo(parts, folder, "--resume_from_checkpoint", "true")
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert before == {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def test_a_policy_is_pushed_without_what_is_of_this_machine(parts: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (tmp_path / "pushing.py").write_text(PUSHING, encoding="utf-8")
    recipe = [ROOT / "recipes" / "ppo.py", *flags(parts, tmp_path / "mine", "--push_to_hub")]
    done = run_python(tmp_path / "pushing.py", hub, *recipe, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    [commit] = hub.iterdir()
    names = {str(path.relative_to(commit)) for path in commit.rglob("*") if path.is_file()}
    assert {"model.safetensors", "metrics.json", "ppo.png", "README.md"} <= names
    assert not names & {"run.yaml", "samples.md", "completions.jsonl"} and not any("checkpoint" in n for n in names)
    card = (commit / "README.md").read_text(encoding="utf-8")
    assert "6 updates of 8 completions, advantages by gae" in card and "| reward |" in card
    assert str(tmp_path) not in card and str(parts) not in card


def test_answers_to_messages_that_a_reward_model_scores(parts: Path, tmp_path: Path) -> None:
    """A policy out of an adapter's folder, prompts with turns before, a model and a function as rewards."""
    done = ppo(parts, tmp_path / "model", "--use_peft", "--max_steps", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    turns = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}]
    rows = [{"messages": [*turns, {"role": "user", "content": f"{n} + 1 ="}]} for n in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.jsonl").write_text(lines, encoding="utf-8")
    more = ["--chat_template_path", parts / "chat.jinja", "--max_steps", "2"]
    rewards = ["--reward_model_path", parts / "judge", "--reward_weights", "1", "0.5"]
    done = ppo(tmp_path, tmp_path / "run", *more, *rewards, reward="of_messages")
    assert done.returncode == 0, done.stderr[-2000:]
    last = tmp_path / "run" / "checkpoint-2"
    entry = next(entry for entry in reversed(log(last)) if "objective/scores" in entry)
    assert entry["rewards/of_messages"] == 1.0
    assert entry["objective/scores"] == pytest.approx(entry["rewards/judge"] + 0.5)
    learnt, start = (load_file(folder / "model.safetensors") for folder in (last, parts / "model"))
    assert all(not torch.equal(learnt[name], weight) for name, weight in start.items())
    done = ppo(parts, tmp_path / "both", *more, "--dataset_name", tmp_path / "prompts.jsonl")
    assert done.returncode == 2 and "one kind at a time" in done.stderr and "prompts.jsonl: messages" in done.stderr


def test_an_adapter_is_merged(parts: Path, tmp_path: Path) -> None:
    done = ppo(parts, tmp_path / "run", "--use_peft", "--merge")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Merged in" in done.stdout and (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged").config.vocab_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "more"),
    [
        ("step:3", ["--kl_target", "1.0", "--normalize_rewards"]),
        ("step:5", ["--advantage", "grpo", "--num_generations", "4"]),
        ("rename@2", ["--use_peft", "--lora_r", "4"]),
        ("step:4", ["--use_peft", "--lora_r", "4", "--lora_layers", "upper", "--dtype", "float32"]),
        ("step:3", [*SEPARATE, "scorer"]),
    ],
    ids=["shared", "grpo", "adapter", "upper", "separate"],
)
def test_killed_it_goes_on_to_the_same_bits(point: str, more: list[str], parts: Path, tmp_path: Path) -> None:
    more = [str(parts / "scorer") if flag == "scorer" else flag for flag in more]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = ppo(parts, whole, *more, reward="moody")
    assert done.returncode == 0, done.stderr[-2000:]
    assert ppo(parts, killed, *more, reward="moody", kill_at=point).returncode == -9
    done = ppo(parts, killed, *more, "--resume_from_checkpoint", "true", reward="moody")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Continuing from" in done.stdout
    last = "checkpoint-6"
    for name in ("optimizer.pt", "scheduler.pt"):
        assert equal(torch.load(whole / last / name), torch.load(killed / last / name)), name
    for path in (whole / last).glob("*.safetensors"):
        assert equal(load_file(path), load_file(killed / last / path.name)), path.name
    assert log(whole / last) == log(killed / last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--num_mini_batches", "2"],
        ["--advantage", "rloo", "--num_generations", "4"],
        ["--use_peft", "--lora_r", "4"],
        ["--value_warmup_steps", "3", "--weight_decay", "0.5"],
    ],
    ids=["gae", "rloo", "adapter", "warm-up"],
)
def test_two_processes_are_one(more: list[str], parts: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    done = ppo(parts, one, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    done = launch_recipe(2, *flags(parts, two, *more), "--gradient_accumulation_steps", "1", recipe="ppo.py")
    assert done.returncode == 0, done.stderr[-2000:]
    for entry, other in zip(log(one / "checkpoint-6"), log(two / "checkpoint-6"), strict=True):
        assert entry.keys() == other.keys()
        for name, value in entry.items():
            assert other[name] == pytest.approx(value, abs=2e-4, rel=2e-3), (entry["step"], name)


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ["copy", "continuous"])
def test_two_processes_with_another_sampler(rollout: str, parts: Path, tmp_path: Path) -> None:
    """Each has completions of its own, whose probabilities are the policy's but for rounding, and learns from all."""
    more = ["--use_peft", "--lora_r", "4", "--lora_layers", "upper", "--rollout", rollout]
    done = launch_recipe(2, *flags(parts, tmp_path, *more), "--gradient_accumulation_steps", "1", recipe="ppo.py")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [entry for entry in log(tmp_path / "checkpoint-6") if "rollout/drift" in entry]
    assert len(lines) == 6 and all(0 < entry["rollout/drift"] < 0.05 for entry in lines)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert all(bool(weight.any()) for weight in weights.values())


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("broken", "broken raised ZeroDivisionError: division by zero (rewards_for_tests.py, line 26)"),
        ("too_few", "too_few returned 3 rewards for 4 completions"),
        ("not_a_number", "not_a_number returned nan for completion 0"),
        ("silent", "No reward said anything of completion 0"),
        ("half_silent", "No reward said anything of completion 1"),
        ("a_word", "must return a list of numbers or None"),
        ("NOT_A_FUNCTION", "it is a int, not a function"),
        ("nowhere", "has no attribute 'nowhere'"),
    ],
)
def test_rewards_that_fail(reward: str, said: str, parts: Path, tmp_path: Path) -> None:
    done = ppo(parts, tmp_path / "run", reward=reward)
    assert done.returncode == 2 and said in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--value_model_path", "x", "--value", "shared"], "--value_model_path is for --value separate"),
        (["--max_prompt_length", "1"], "no prompt has at most 1 tokens"),
        (["--response_length", "62"], "--max_prompt_length"),
        (["--num_mini_batches", "3"], "does not divide"),
        (["--use_peft", "--peft_type", "prompt_tuning"], "take lora or ia3"),
        (["--packing", "true"], "--packing has no meaning for ppo"),
        (["--max_length", "100"], "--max_length has no meaning for ppo"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor has no meaning for ppo"),
        (["--early_stopping_patience", "1"], "--early_stopping_patience has no meaning for ppo"),
        (["--use_peft", "--init_lora_weights", "eva"], "begins with training examples"),
        (["--judge", "nowhere.py:f"], "nowhere.py"),
    ],
)
def test_flags_that_do_not_go_together(more: list[str], said: str, parts: Path, tmp_path: Path) -> None:
    done = ppo(parts, tmp_path / "run", *more)
    assert done.returncode == 2 and said in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_without_a_reward(parts: Path, tmp_path: Path) -> None:
    done = ppo(parts, tmp_path / "run", reward="")
    assert done.returncode == 2 and "There is no reward" in done.stderr


def test_the_dry_run_trains_nothing(parts: Path, tmp_path: Path) -> None:
    done = ppo(
        parts, tmp_path / "run", "--dry_run", "--reward_model_path", parts / "scorer", *SEPARATE, parts / "scorer"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 updates of 8 completions of up to 8 tokens" in done.stdout and "value model" in done.stdout
    assert not (tmp_path / "run").exists()
