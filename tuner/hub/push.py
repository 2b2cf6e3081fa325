"""A finished run to the Hub: what a user of the model needs, in one commit.

Left out on purpose: `run.yaml` (paths of this machine), `samples.md` (validation rows), checkpoints, and
`training_args.bin`. A half-trained state is never pushed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from tuner.config.arguments import RecipeArguments
from tuner.errors import ArgumentError, one_line

PUSHED = [
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py"),
    *("adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("spiece.model", "chat_template*", "metrics.json", "loss.png", "ppo.png", "README.md"),
]


class HubRepository:
    """The repository that a run is pushed to; made, or found, before the run starts. An `ArgumentError` says what the
    Hub refuses."""

    def __init__(self, args: RecipeArguments):
        self._api: Any = HfApi(token=args.extra.get("hub_token"))
        self.revision: str | None = args.extra.get("hub_revision")
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        try:
            made = self._api.create_repo(name, private=args.extra.get("hub_private_repo"), exist_ok=True)
        except Exception as error:  # the Hub client's exception types are many and private
            raise ArgumentError(f"--push_to_hub: the repository cannot be made ready: {one_line(error)}") from error
        self.repo_id: str = made.repo_id

    def push(self, folder: Path, message: str) -> str:
        """Upload a run's folder, and return where it is."""
        try:
            done = self._api.upload_folder(
                repo_id=self.repo_id,
                folder_path=str(folder),
                commit_message=message,
                allow_patterns=PUSHED,
                ignore_patterns=["*/*"],  # the patterns above match in folders too
                revision=self.revision,
            )
        except Exception as error:  # as above
            raise ArgumentError(f"--push_to_hub: {one_line(error)} The model is in {folder}.") from error
        return str(done.commit_url)
