"""One process of `test_split_adamw.py`: `recipes/sft.py`, and then a hash of this process's weights in its folder."""

from __future__ import annotations

import hashlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

ROOT = Path(__file__).parents[2]
train = Trainer.train


def train_and_note(self: Trainer, *args: Any, **kwargs: Any) -> Any:
    result = train(self, *args, **kwargs)
    digest = hashlib.sha256()
    for _, parameter in sorted(self.model.named_parameters()):
        digest.update(parameter.detach().view(torch.uint8).numpy().tobytes())
    name = f"weights-{os.environ['RANK']}.txt"
    (Path(self.args.output_dir) / name).write_text(digest.hexdigest(), encoding="ascii")
    return result


if __name__ == "__main__":
    Trainer.train = train_and_note
    sys.argv[0] = str(ROOT / "recipes" / "sft.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
