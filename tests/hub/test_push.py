"""What of a run's folder is pushed, and in how many commits. There is no Hub here: its client is replaced, and nothing
else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

from tests.processes import run_python
from tests.recipes import NANO, ROOT, SMALL
from tuner.config.arguments import parse_arguments
from tuner.config.recipes import arguments_of
from tuner.errors import ArgumentError
from tuner.hub import push
from tuner.model import TunerEncoderForReplacedTokenDetection
from tuner.text.train_tokenizer import train_tokenizer

FOLDER = [
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "metrics.json", "loss.png", "samples.md", "run.yaml", "training_args.bin", ".lock"),
    *("decoder.py", "checkpoint-4/model.safetensors", "checkpoint-4/optimizer.pt", "runs/events.out.tfevents.1"),
]
PUBLIC = {
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "metrics.json", "loss.png", "decoder.py"),
}


class Client:
    """Keeps what it is given."""

    def __init__(self, token=None):
        self.token, self.made, self.commits = token, [], []
        Client.last = self

    def create_repo(self, name, private=None, exist_ok=False):
        self.made.append((name, private))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns, ignore_patterns, revision):
        files = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        which = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        self.commits.append((repo_id, revision, set(filter_repo_objects(files, **which))))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(push, "HfApi", Client)
    for name in FOLDER:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("x")
    return tmp_path / "mine"


def arguments(folder, *flags):
    recipe = arguments_of(ROOT / "recipes" / "sft.py")
    return parse_arguments(recipe, ["--output_dir", str(folder), "--hub_token", "hf_secret", *flags])


def test_one_commit_of_what_a_user_needs(run_folder):
    repository = push.HubRepository(arguments(run_folder, "--hub_private_repo", "true", "--hub_revision", "v1"))
    assert Client.last.made == [("mine", True)] and Client.last.token == "hf_secret"
    assert repository.push(run_folder, "End of training") == "https://hub/me/mine/commit/1"
    assert Client.last.commits == [("me/mine", "v1", PUBLIC)]


def test_a_refusal_is_one_message_and_the_model_is_there(run_folder, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError("429 Client Error: Too Many Requests\nfor url ...")

    repository = push.HubRepository(arguments(run_folder))
    monkeypatch.setattr(Client, "upload_folder", refuse)
    with pytest.raises(ArgumentError, match=rf"^--push_to_hub: 429 .*Requests .* The model is in {run_folder}\.$"):
        repository.push(run_folder, "x")
    monkeypatch.setattr(Client, "create_repo", refuse)
    with pytest.raises(ArgumentError, match="cannot be made ready: 429"):
        push.HubRepository(arguments(run_folder))


# A recipe whose Hub is a folder: each commit one in it.
PUSHING = """
import runpy, shutil, sys
from pathlib import Path
from types import SimpleNamespace
from huggingface_hub.utils import filter_repo_objects
import tuner.hub.push

class Client:
    def __init__(self, token=None): pass
    def create_repo(self, name, **_): return SimpleNamespace(repo_id=f"me/{name}")
    def upload_folder(self, repo_id, folder_path, commit_message, revision, **patterns):
        files = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        commit = HUB / str(len(list(HUB.glob("*"))))
        for name in filter_repo_objects(files, **patterns):
            (commit / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, commit / name)
        return SimpleNamespace(commit_url=commit)

HUB, tuner.hub.push.HfApi = Path(sys.argv[1]), Client
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_finished_discriminator_is_pushed_without_what_is_of_this_machine(tmp_path, chats):
    """Without the generator; without paths, secrets and rows."""
    (tmp_path / "hub").mkdir()
    talks = [json.loads(line)["messages"] for line in chats.read_text(encoding="utf-8").splitlines()]
    texts = [turn["content"] for talk in talks for turn in talk]
    train_tokenizer(texts, "wordpiece", 512, "rtd").save_pretrained(tmp_path / "tokenizer")
    flags = ["--objective", "rtd", "--dataset_name", chats, *SMALL[2:], *NANO, "--max_length", "64", "--max_steps", "2"]
    flags += [
        "--tokenizer_name_or_path",
        tmp_path / "tokenizer",
        "--output_dir",
        tmp_path / "run",
        "--report_to",
        "none",
    ]
    flags += ["--push_to_hub", "true", "--hub_token", "hf_secret"]
    done = run_python("-c", PUSHING, tmp_path / "hub", ROOT / "recipes" / "pretrain.py", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    (commit,) = (tmp_path / "hub").iterdir()
    _, info = TunerEncoderForReplacedTokenDetection.from_pretrained(commit, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pushed = [path.read_bytes() for path in commit.rglob("*") if path.is_file()]
    longest = max(texts, key=len)
    for ours in (str(tmp_path), str(chats), "hf_secret", longest):
        assert not any(ours.encode() in content for content in pushed), ours
    assert "on the chats.jsonl dataset" in (commit / "README.md").read_text(encoding="utf-8")
