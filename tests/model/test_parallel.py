"""Two processes on the CPU hold one model between them, and compute what one process computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.model.helpers import tiny_decoder

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tp_size", "fsdp_size"])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "use_qk_norm": False}],
    ids=["tied", "biases"],
)
def test_sharded_is_whole(way: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """Logits and every gradient: a weight that each process holds whole still sees only its own heads' gradient."""
    tiny_decoder(**overrides).save_pretrained(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, str(ROOT / "tests/model/parallel_worker.py"), str(tmp_path), way],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("same") == 2
