"""What of a run's folder is pushed, and in how many commits. There is no Hub here: its client is replaced, and nothing
else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

from tests.recipes import ROOT
from tuner.config.arguments import parse_arguments
from tuner.config.recipes import arguments_of
from tuner.errors import ArgumentError
from tuner.hub import push

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
