"""Two processes on the CPU hold one model between them, and compute what one process computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.model.helpers import scramble, tiny_decoder
from tests.model.test_shapes import decoder, encoder, pair

ROOT = Path(__file__).parents[2]
BIASES = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "use_qk_norm": False}
EVERY_WAY = pytest.mark.parametrize("way", ["tp_size", "fsdp_size"])


def assert_sharded_is_whole(model: PreTrainedModel, way: str, folder: Path) -> None:
    """Logits and every gradient: a weight that each process holds whole still sees only its own heads' gradient."""
    model.save_pretrained(folder)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, str(ROOT / "tests/model/parallel_worker.py"), str(folder), way],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("same") == 2


@pytest.mark.slow
@EVERY_WAY
@pytest.mark.parametrize("overrides", [{}, BIASES], ids=["tied", "biases"])
def test_sharded_is_whole(way: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    assert_sharded_is_whole(tiny_decoder(**overrides), way, tmp_path)


@pytest.mark.slow
@EVERY_WAY
@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        pytest.param(encoder, {}, id="encoder"),
        pytest.param(encoder, BIASES, id="encoder, biases"),
        pytest.param(encoder, {"attention_type": "linformer"}, id="encoder, Linformer"),
        pytest.param(encoder, {"attention_type": "performer"}, id="encoder, Performer"),
        pytest.param(decoder, {"attention_type": "performer"}, id="decoder, Performer"),
        pytest.param(pair, {}, id="pair"),
        pytest.param(pair, BIASES, id="pair, biases"),
        pytest.param(decoder, {"num_local_experts": 4, "router_aux_loss_coef": 0.5}, id="experts"),
        pytest.param(decoder, {"position_embedding_type": "relative"}, id="relative positions"),
        pytest.param(decoder, {"position_embedding_type": "alibi", "norm_position": "post"}, id="alibi, post norm"),
    ],
)
def test_every_shape_sharded_is_whole(
    shape: Callable[..., PreTrainedModel], fields: dict[str, Any], way: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    assert_sharded_is_whole(scramble(shape(**fields)), way, tmp_path)
