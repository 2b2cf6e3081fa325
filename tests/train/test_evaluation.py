"""Sums of an evaluation."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tuner.train.saving import SavingTrainer
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


def test_what_is_evaluated_after_all_examples_are_the_rows_that_are_named(monkeypatch):
    """A prediction goes through the same loop: it must not be of the data sets of the evaluation before."""
    bare, seen = Trainer.__new__(Trainer), []
    part = SimpleNamespace(source=SimpleNamespace(short="a"), eval=[1, 2])
    bare.examples = SimpleNamespace(parts=[part], eval=SimpleNamespace(select=list))
    bare.get_eval_dataloader = list
    monkeypatch.setattr(SavingTrainer, "evaluate", lambda self, *_: seen.append(self._loaders("given")), raising=False)
    bare.evaluate()
    bare.evaluate(["named"])
    assert seen == [{"a": [0, 1]}, {"": "given"}] and bare._loaders("given") == {"": "given"}
