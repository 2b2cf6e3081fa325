"""Gradients that overflow in fp16 are the loss scaler's business; anywhere else, and without end, they stop the run."""

from types import SimpleNamespace

import pytest
import torch

from tuner.errors import NonFiniteError
from tuner.train.trainer import OVERFLOWS, Trainer


def trainer(scaler, folder):
    state = SimpleNamespace(global_step=0)
    fake = SimpleNamespace(_overflows=0, accelerator=SimpleNamespace(scaler=scaler), state=state, folder=folder)
    fake._unit, fake._blame = "rows", lambda what, rows: Trainer._blame(fake, what, rows)
    return fake


def test_a_scaler_may_overflow_and_not_for_ever(tmp_path):
    fake, rows = trainer(torch.amp.GradScaler("cpu"), tmp_path), [torch.tensor([[7]])]
    for _ in range(OVERFLOWS):
        Trainer._allow_overflow(fake, float("inf"), rows)
    with pytest.raises(NonFiniteError, match=r"gradient norm is inf at step 1.*rows 7 "):
        Trainer._allow_overflow(fake, float("inf"), rows)


def test_without_a_scaler_the_first_one_stops(tmp_path):
    with pytest.raises(NonFiniteError, match="before the optimizer stepped"):
        Trainer._allow_overflow(trainer(None, tmp_path), float("nan"), [torch.tensor([[7]])])
