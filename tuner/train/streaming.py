"""The place of a stream in a checkpoint, so that a resumed run reads on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class StreamPlace:
    """Where a trainer's `TokenStream` stands after the steps taken."""

    def __init__(self, trainer: Any):
        self._trainer = trainer

    def state(self) -> dict[str, Any]:
        """The place after as many blocks as all processes were given."""
        args = self._trainer.args
        a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        place: dict[str, Any] = self._trainer.train_dataset.place(self._trainer.state.global_step * a_step)
        return place

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing: the stream must stand there before its first block is read (`go_to`)."""

    def go_to(self, checkpoint: Path) -> None:
        """Let the stream begin at a checkpoint's place, without what lies before it."""
        self._trainer.args.ignore_data_skip = True
        self._trainer.train_dataset.go_to(json.loads((checkpoint / "stream.json").read_text(encoding="utf-8")))
