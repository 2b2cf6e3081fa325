"""On a card: what it computes is what the CPU computes, and training is the same bits again."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import methods, parity, recipes, repeat
from benchmarks.gpu.setting import Setting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Tiny models on the card, and what recipes read."""
    setting = Setting(tmp_path_factory.mktemp("gpu"), "cuda", small=True)
    recipes.prepare(setting)
    return setting


@pytest.mark.parametrize(
    "check", [parity.logits, parity.packed, parity.loss, repeat.operations], ids=lambda c: c.__name__
)
def test_the_card_computes_what_the_cpu_computes(check, setting):
    assert check(setting).message


@pytest.mark.parametrize(
    "check",
    [
        *(recipes.plain, recipes.launched, recipes.launched_with_file, recipes.fp16, recipes.half, recipes.muon),
        *(recipes.checkpointed, recipes.compiled, recipes.flex, recipes.objectives, recipes.talk, recipes.resume),
        *(recipes.resume_deterministic, methods.rewards, methods.groups, methods.adapters, methods.heads),
        methods.continuous,
    ],
    ids=lambda c: c.__name__,
)
def test_recipes_and_commands_run_on_the_card(check, setting):
    assert check(setting).message
