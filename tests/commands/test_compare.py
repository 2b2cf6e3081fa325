"""`tuner compare`: checkpoints beside each other, on the same prompts and random numbers."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from tests.processes import run_python
from tests.rl.models import policy, tiny_tokenizer
from tuner.text.answers import training_tokenizer
from tuner.text.chat import encode_conversations

TALKS = [
    [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}],
    [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d e"}],
    [{"role": "user", "content": "1 2"}, {"role": "assistant", "content": "3 4 5 6"}],
    [{"role": "user", "content": "mat sat"}, {"role": "assistant", "content": "on the cat"}],
] * 3


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "tuner.cli", "compare", *map(str, words), timeout=240)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Two policies that differ, prompts with answers, and a reward function."""
    folder = tmp_path_factory.mktemp("compare")
    for seed in (0, 1):
        model = policy(seed, spread=0.1)
        model.save_pretrained(folder / f"model-{seed}")
        tiny_tokenizer().save_pretrained(folder / f"model-{seed}")
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    (folder / "reward.py").write_text(
        "def share_of_a(completions, **_):\n"
        "    said = [c[-1]['content'] for c in completions]\n"
        "    return [text.count('a') / max(len(text), 1) for text in said]\n"
    )
    return folder


def words(there: Path, *models: str) -> list[str]:
    flags = {"--reward_funcs": there / "reward.py:share_of_a", "--dataset_name": there / "talks.jsonl"}
    given = [str(word) for pair in flags.items() for word in pair]
    return [*(str(there / model) for model in models), *given, "--test_split_size", "6", "--response_length", "8"]


def test_the_table(there, tmp_path):
    """A model is what it is however often it is asked; another differs, and its divergence is above 0."""
    file = tmp_path / "table.json"
    done = call(*words(there, "model-0", "model-0", "model-1"), "--untrained", "--output", str(file))
    assert done.returncode == 0, done.stderr
    new, first, again, other = json.loads(file.read_text())
    assert {**again, "win_rate": None, "p": None} == {**first, "win_rate": None, "p": None}
    assert (again["win_rate"], again["p"]) == (0.5, 1.0) and first["win_rate"] is not None and new["win_rate"] is None
    assert abs(first["kl"]) < 1e-4 < other["kl"] and new["kl"] > 0
    assert all(row["name"] in done.stdout.replace("\n", "") or "model-" in row["name"] for row in (first, other))
    assert "6 prompts" in done.stdout and "win rate" in done.stdout
    # Its perplexity is that of the answers, their ends included, and of nothing else.
    from tuner.data.sources import load_splits

    _, held_out = load_splits(str(there / "talks.jsonl"), test_split_size=6)
    nats, tokens = 0.0, 0
    writer, _ = training_tokenizer(tiny_tokenizer())
    for row in encode_conversations(writer, held_out["messages"]):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            chances = policy(0, spread=0.1)(ids).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != -100:
                nats, tokens = nats - float(chances[place - 1, label]), tokens + 1
    assert first["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_prompts_without_answers(there, tmp_path):
    """No answer, no perplexity; the rest is there."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"a b {n}"}) + "\n" for n in range(8)))
    given = words(there, "model-0")
    given[given.index("--dataset_name") + 1] = str(tmp_path / "prompts.jsonl")
    done = call(*given, "--output", str(tmp_path / "table.json"))
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "table.json").read_text())
    assert row["perplexity"] is None and row["reward"]["n"] == 4  # half of 8


def test_a_column_answer_is_the_reward_s(there, tmp_path):
    """It is not taken for what the assistant said, and that is not told to the reward."""
    rows = [{"messages": talk, "answer": number} for number, talk in enumerate(TALKS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["def f(completions, answer, **others):", "    assert set(others) == {'prompts', 'completion_ids'}, others"]
    (tmp_path / "right.py").write_text("\n".join([*lines, "    return answer", ""]))
    given = words(there, "model-0")
    given[given.index("--dataset_name") + 1] = str(tmp_path / "rows.jsonl")
    given[given.index("--reward_funcs") + 1] = f"{tmp_path / 'right.py'}:f"
    done = call(*given, "--output", str(tmp_path / "table.json"))
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "table.json").read_text())
    assert row["perplexity"] > 1
    assert row["reward"]["value"] * 6 == pytest.approx(round(row["reward"]["value"] * 6)) and row["reward"]["value"] > 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--reference", "elsewhere"], "--reference elsewhere is none of the models"),
        (["--reward_funcs", "nowhere.py:f"], "nowhere.py:f"),
        (["--dataset_name", "no-such.jsonl"], "no-such.jsonl"),
        (["--output", "/no/such/folder/table.json"], "there is no folder"),
        (["--max_prompt_length", "1"], "no prompt has at most 1 tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(there, change, said):
    done = call(*words(there, "model-0"), *change)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_without_a_reward(there):
    done = call(there / "model-0")
    assert done.returncode == 2 and "There is no reward" in done.stderr
