"""bfloat16 weights with their next bits in the optimizer learn like float32 weights."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from tests.recipes import ROOT, environment, equal
from tuner.optim import split_adamw
from tuner.optim.split_adamw import SplitAdamW, halve_parameters, join, own_optimizer


def train(optimizer, parameter, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        gradient = (
            torch.randn(parameter.shape, generator=generator) * 0.1 + parameter.detach().float() * 0.3
        ).bfloat16()
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def test_it_follows_adamw_in_float32():
    torch.manual_seed(0)
    start = torch.randn(2000).bfloat16()
    plain, halved, naive = (
        torch.nn.Parameter(start.to(t).clone()) for t in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    settings = {"lr": 1e-4, "weight_decay": 0.1}
    one, other = torch.optim.AdamW([plain], **settings), SplitAdamW([halved], **settings)
    train(one, plain, 300)
    train(other, halved, 300)
    master = join(halved.data, other.state[halved]["low"])
    moved, lost = (plain - start.float()).abs().mean(), (master - plain).abs().mean()
    assert lost < 0.02 * moved
    train(torch.optim.AdamW([naive], **settings), naive, 300)
    assert (naive - plain).abs().mean() > 10 * lost, "bfloat16 alone cannot show most of these steps"


def test_its_state_survives_saving_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(500).bfloat16())
    optimizer = SplitAdamW([parameter], lr=1e-3)
    train(optimizer, parameter, 5)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = torch.nn.Parameter(parameter.detach().clone())
    restored = SplitAdamW([again], lr=1e-3)
    restored.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    assert equal(optimizer.state_dict(), restored.state_dict())
    for one, which in ((optimizer, parameter), (restored, again)):
        train(one, which, 3, seed=1)
    assert torch.equal(parameter, again) and equal(optimizer.state_dict(), restored.state_dict())


def test_rounding_is_alike_whatever_torchs_generator_has_drawn():
    start, results = torch.randn(500).bfloat16(), []
    for seed in (1, 2):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = SplitAdamW([parameter], lr=1e-3)
        torch.manual_seed(seed)
        train(optimizer, parameter, 4)
        results.append([parameter.data, optimizer.state_dict()])
    assert equal(*results)


@pytest.mark.slow
def test_two_processes_keep_the_same_weights():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "optim" / "weights_worker.py")],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.split() == ["same"] * 2, done.stderr[-3000:]


def test_loading_a_state_copies_nothing():
    """accelerate loads an optimizer's own state back into it; a copy would be a second state in memory."""
    parameter = torch.nn.Parameter(torch.randn(128).bfloat16())
    optimizer = SplitAdamW([parameter])
    before = {name: t.data_ptr() for name, t in optimizer.state[parameter].items() if isinstance(t, torch.Tensor)}
    optimizer.load_state_dict(optimizer.state_dict())
    after = {name: t.data_ptr() for name, t in optimizer.state[parameter].items() if isinstance(t, torch.Tensor)}
    assert before == after and len(before) == 4


def test_it_takes_eight_bytes_a_parameter():
    parameter = torch.nn.Parameter(torch.randn(64, 64).bfloat16())
    state = SplitAdamW([parameter]).state[parameter]
    held = sum(t.numel() * t.element_size() for t in state.values() if isinstance(t, torch.Tensor))
    assert (held + 2 * parameter.numel() * parameter.element_size()) / parameter.numel() == 8 + 4 / 64


def test_large_and_small_parameters_and_groups():
    torch.manual_seed(0)
    large, small = (torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in ((1100, 1000), (3,)))
    frozen = torch.nn.Parameter(torch.ones(2).bfloat16())
    optimizer = SplitAdamW([{"params": [large], "weight_decay": 0.5}, {"params": [small, frozen], "weight_decay": 0.0}])
    before = copy.deepcopy((large.data, small.data))
    large.grad, small.grad = torch.randn_like(large), torch.randn_like(small)
    optimizer.step()
    for parameter, old in zip((large, small), before, strict=True):
        assert (join(parameter.data, optimizer.state[parameter]["low"]) != old.float()).float().mean() > 0.99
    assert torch.equal(frozen.data, torch.ones(2).bfloat16()), "no gradient, no step"


def test_small_parameters_together_are_each_alone(monkeypatch):
    """Of every kind: several in one bucket, one larger than a chunk, one whose size is no multiple of a block."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "randint", lambda most, size, **_: torch.full(size, most // 2, dtype=torch.int32))
    shapes = ((64, 10), (128,), (65,), (65,), (600, 600), (64,))
    starts = [torch.randn(shape).bfloat16() for shape in shapes]
    gradients = [torch.randn(shape).bfloat16() for shape in shapes]

    def after(groups, parameters):
        optimizer = SplitAdamW([{"params": group} for group in groups], lr=0.1)
        for _ in range(3):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        return [[parameter.data, optimizer.state[parameter]] for parameter in parameters]

    one, other = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    assert equal(after([one], one), after([[parameter] for parameter in other], other))


def test_an_accelerator_gets_few_operations(monkeypatch):
    of_device = split_adamw.chunk_size
    monkeypatch.setattr(split_adamw, "chunk_size", lambda device: of_device("cuda"))
    layer = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 64), (1536, 64), (64, 1536)]
    parameters = [torch.nn.Parameter(torch.zeros(shape).bfloat16()) for shape in layer * 8]
    parameters += [torch.nn.Parameter(torch.zeros(576).bfloat16()) for _ in range(17)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = SplitAdamW(parameters)
    launches = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal launches
            launches += not function.is_view and function.namespace == "aten"
            return function(*args, **(kwargs or {}))

    with Watch():
        optimizer.step()
    assert 0 < launches <= 150, launches


def test_a_first_small_step_shows_as_it_would_in_float32():
    """Weights begin with the bits that bfloat16 leaves out: a tiny step moves the right share of them."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(300, 300, bias=False)
    start = layer.weight.detach().clone()
    halve_parameters(layer)
    layer.weight.grad = -torch.ones_like(layer.weight)
    SplitAdamW(layer.parameters(), lr=1e-5, weight_decay=0.0).step()
    seen = (layer.weight.detach().double() - start.bfloat16().double()).mean()
    assert float(seen) == pytest.approx(1e-5, rel=0.05)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32"):
        SplitAdamW([torch.nn.Parameter(torch.ones(2))])


def test_an_adapter_over_bfloat16_weights_gets_torchs_adamw(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    model = torch.nn.ModuleDict({"base": torch.nn.Linear(4, 4), "adapter": torch.nn.Linear(4, 4)})
    model["base"].requires_grad_(False).bfloat16()
    assert own_optimizer(arguments, model) is None, "the adapter is in float32"
    model.requires_grad_(True)
    assert own_optimizer(arguments, model) is None
    model.bfloat16()
    assert own_optimizer(arguments, model)[0] is SplitAdamW
