"""Two processes on the CPU hold one model between them, and compute what one process computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.helpers import scramble, tiny_decoder
from tests.model.test_shapes import decoder, encoder, pair
from tests.processes import ROOT, run_together

BIASES = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "use_qk_norm": False}
MODELS = {
    "grouped decoder, tied": (tiny_decoder, {}),
    "grouped decoder, biases": (tiny_decoder, BIASES),
    "encoder": (encoder, {}),
    "encoder, biases": (encoder, BIASES),
    "encoder, Linformer": (encoder, {"attention_type": "linformer"}),
    "encoder, Performer": (encoder, {"attention_type": "performer"}),
    "decoder, Performer": (decoder, {"attention_type": "performer"}),
    "pair": (pair, {}),
    "pair, biases": (pair, BIASES),
    "experts": (decoder, {"num_local_experts": 4, "router_aux_loss_coef": 0.5}),
    "relative positions": (decoder, {"position_embedding_type": "relative"}),
    "alibi, post norm": (decoder, {"position_embedding_type": "alibi", "norm_position": "post"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tp_size", "fsdp_size"])
def test_sharded_is_whole(way: str, tmp_path: Path) -> None:
    """Logits and every gradient: a weight that each process holds whole still sees only its own heads' gradient.

    One pair of processes takes all the models in turn: to start one costs more than what it computes.
    """
    for name, (shape, fields) in MODELS.items():
        torch.manual_seed(0)
        model = shape(**fields)
        (model if shape is tiny_decoder else scramble(model)).save_pretrained(tmp_path / name)
    result = run_together(2, ROOT / "tests/model/parallel_worker.py", way, *(tmp_path / name for name in MODELS))
    same = {name for name in MODELS if result.stdout.splitlines().count(f"same: {name}") == 2}
    assert result.returncode == 0 and same == set(MODELS), f"{sorted(set(MODELS) - same)}\n{result.stderr[-5000:]}"
