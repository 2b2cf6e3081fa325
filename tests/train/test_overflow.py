"""Gradients that overflow in fp16 are the loss scaler's business; anywhere else, and without end, they stop the run."""

from types import SimpleNamespace

import pytest
import torch

from tuner.errors import NonFiniteError
from tuner.train.trainer import OVERFLOWS, Trainer


def trainer(scaler, folder):
    """What the check before the optimizer's step looks at, and nothing else."""
    bare = Trainer.__new__(Trainer)
    bare.accelerator = SimpleNamespace(scaler=scaler, distributed_type="NO")
    bare.args, bare.state = SimpleNamespace(output_dir=folder), SimpleNamespace(global_step=0)
    bare.objective, bare._streams, bare.guard, bare._overflows = SimpleNamespace(keeps_rows=True), False, None, 0
    bare.examples = SimpleNamespace(parts=[])
    return bare


def step(bare, norm):
    bare._step = [(torch.tensor([[7]]), torch.tensor(2.0))]
    return bare._get_grad_norm(None, torch.tensor(norm))


def test_a_scaler_may_overflow_and_not_for_ever(tmp_path):
    bare = trainer(torch.amp.GradScaler("cpu"), tmp_path)
    for _ in range(OVERFLOWS):
        step(bare, float("inf"))
    assert step(bare, 1.0) == 1
    for _ in range(OVERFLOWS):
        step(bare, float("inf"))
    with pytest.raises(NonFiniteError, match=r"gradient norm is inf at step 1.*rows 7 "):
        step(bare, float("inf"))


def test_without_a_scaler_the_first_one_stops(tmp_path):
    bare = trainer(None, tmp_path)
    assert step(bare, 1.0) == 1
    with pytest.raises(NonFiniteError, match="before the optimizer stepped"):
        step(bare, float("nan"))
