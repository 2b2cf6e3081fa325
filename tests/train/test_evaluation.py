"""Sums of an evaluation."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tuner.train.trainer import Trainer


class Sum:
    """A tensor of a model, as far as it is added up; tells where it went."""

    def detach(self):
        return self

    def to(self, device, dtype):
        self.went = (device.type, dtype)
        return 1.0


@pytest.mark.parametrize(("device", "dtype"), [("mps", torch.float32), ("cpu", torch.float64)])
def test_they_are_in_the_widest_type_of_the_device(device, dtype):
    """MPS has no float64."""
    bare, found = Trainer.__new__(Trainer), Sum()
    bare.args, bare.is_fsdp_enabled, bare.is_deepspeed_enabled = SimpleNamespace(device=torch.device(device)), 0, 0
    bare.accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model, autocast=nullcontext)
    bare._prepare_inputs, bare._sums = dict, {}
    for _ in range(2):
        bare.prediction_step(lambda **_: {"loss": found}, {"labels": 0, "rows": 0, "tokens": 0})
    assert bare._sums == {"loss": 2.0} and found.went == (device, dtype)
