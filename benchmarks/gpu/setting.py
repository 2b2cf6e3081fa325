"""Where a check runs and how large: on the card in real sizes, or on the CPU in tiny ones, as a rehearsal."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# SmolLM2-135M (its config.json on the Hub), MiniLM-L6 and T5-small, whose weights are drawn at random here.
SMOLLM2: dict[str, Any] = {
    **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192},
    **{"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
}  # fmt: skip
MINILM = {"vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
MINILM |= {"num_attention_heads": 12, "max_position_embeddings": 512}
T5 = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
TINY = {
    "llama": {"vocab_size": 512, "hidden_size": 144, "intermediate_size": 192, "num_hidden_layers": 2},
    "bert": {"vocab_size": 256, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2},
    "t5": {"vocab_size": 256, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
}


class Skipped(Exception):
    """A check that cannot run here; its text says why."""


@dataclass
class Finding:
    """What a check found: a line for people, and figures."""

    message: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What every check is given.

    Attributes:
        work: folder that all checks share.
        device: `cuda` or `cpu`.
        small: tiny models and few steps.
    """

    work: Path
    device: str
    small: bool

    def llama(self, **changes: Any) -> dict[str, Any]:
        """Fields of a `LlamaConfig` of SmolLM2's shape, or of a tiny one with as many heads."""
        return {**SMOLLM2, **(TINY["llama"] if self.small else {}), **changes}

    @property
    def on_card(self) -> bool:
        return self.device == "cuda"


def run(command: list[str | Path], stdin: str | None = None, **environment: str) -> str:
    """Run a command in the repository's root to its end.

    Returns:
        What it wrote on standard output.

    Raises:
        RuntimeError: an exit code that is not 0, with the end of what it wrote.
    """
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
    )  # fmt: skip
    print(f"$ {' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}", flush=True)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise RuntimeError(f"exit code {done.returncode}: {' | '.join(lines[-3:])[-600:]}")
    return done.stdout


def python(*arguments: str | Path, **environment: str) -> str:
    """Run this interpreter; see `run`."""
    return run([sys.executable, *arguments], **environment)


def synchronize() -> None:
    """Wait for the card, where there is one."""
    import torch  # heavy, and most of what imports this file has no need of it

    if torch.cuda.is_available():
        torch.cuda.synchronize()
