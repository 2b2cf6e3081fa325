"""Muon and AdamW as one optimizer are the two of torch, step by step, and after a checkpoint too."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tuner.model import (
    TunerDecoderConfig,
    TunerDecoderForCausalLM,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerEncoderForPreTraining,
    TunerEncoderModel,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.objectives.electra import GeneratorAndDiscriminator
from tuner.optim import muon
from tuner.optim.muon import MuonWithAdamW, muon_groups

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 48, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
LR, BETAS, EPS, DECAY = 0.01, (0.9, 0.98), 1e-6, 0.2


def decoder(**changes):
    torch.manual_seed(0)
    return TunerDecoderForCausalLM(TunerDecoderConfig(**{**SHAPE, **changes}))


def together(model):
    return MuonWithAdamW(muon_groups(model, DECAY), LR, BETAS, EPS, DECAY)


def apart(model):
    """The two optimizers of torch on the same groups."""
    groups = [dict(group) for group in muon_groups(model, DECAY)]
    matrices = [group for group in groups if group.pop("use_muon")]
    others = [group for group in groups if group not in matrices]
    orthogonal = torch.optim.Muon(matrices, LR, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [orthogonal, torch.optim.AdamW(others, LR, BETAS, EPS, fused=True)]


def put_gradients(model, step, leave_out=()):
    generator = torch.Generator().manual_seed(step)
    for name, parameter in model.named_parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if name in leave_out else gradient


def schedule(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def assert_same(one, other):
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def saved(state):
    """As a checkpoint keeps it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- steps ----


class Watch(TorchDispatchMode):
    """The dtypes of what products take."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.dtypes |= {argument.dtype for argument in args if isinstance(argument, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def test_products_stay_in_float32_where_bfloat16_is_slow(monkeypatch):
    """One step without momentum's past, so that it shows the gradient made orthogonal: the same but for rounding."""
    steps = {}
    for fast in (True, False):
        monkeypatch.setattr(muon, "has_fast_bf16", lambda device, fast=fast: fast)
        model = decoder()
        before = copy.deepcopy(model)
        put_gradients(model, 0)
        with Watch() as watch:
            together(model).step()
        assert watch.dtypes == {torch.bfloat16 if fast else torch.float32}
        steps[fast] = {
            name: parameter.detach() - first
            for (name, parameter), first in zip(model.named_parameters(), before.parameters(), strict=True)
        }
    for name, step in steps[False].items():
        apart_by = (step - steps[True][name]).norm() / step.norm()
        assert apart_by < 0.02, name
        assert (apart_by > 0) == (step.dim() == 2 and ".layers." in name), f"AdamW's step of {name} is the same"


def test_steps_are_those_of_the_two_optimizers(monkeypatch):
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: True)
    model = decoder()
    twin = copy.deepcopy(model)
    begin = copy.deepcopy(model)
    ours, theirs = together(model), apart(twin)
    schedules = [schedule(optimizer) for optimizer in (ours, *theirs)]
    for step in range(5):
        for each in (model, twin):
            put_gradients(each, step)
        for optimizer in (ours, *theirs):
            optimizer.step()
        assert_same(model, twin)
        for each in schedules:
            each.step()
    for (name, parameter), first in zip(model.named_parameters(), begin.parameters(), strict=True):
        assert not torch.equal(parameter, first), f"{name} moved"


def test_a_schedule_acts_on_every_group():
    model = decoder()
    optimizer = together(model)
    assert len(optimizer.param_groups) == 3 and {group["lr"] for group in optimizer.param_groups} == {LR}
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    before = copy.deepcopy(model)
    put_gradients(model, 0)
    optimizer.step()
    assert_same(model, before)


@pytest.mark.parametrize("kind", [0, 1])
def test_groups_of_one_kind_alone(kind):
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = MuonWithAdamW([{"params": [weight], "use_muon": bool(kind)}], LR, BETAS, EPS, DECAY)
    weight.grad = torch.eye(4)
    optimizer.step()
    assert not torch.equal(weight, torch.ones(4, 4)) and len(optimizer.state) == 1


def test_a_parameter_without_a_gradient_stays():
    """A step that is left out has no gradients: no moment moves and no weight decays."""
    model = decoder()
    optimizer = together(model)
    still = {"model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"}
    still &= dict(model.named_parameters()).keys()
    assert len(still) == 3
    put_gradients(model, 0)
    optimizer.step()
    before = copy.deepcopy(model)
    put_gradients(model, 1, leave_out=still)
    optimizer.step()
    for (name, parameter), first in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, first) == (name in still), name
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters()), "both kinds' gradients are cleared"
    now, states = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.step()
    assert_same(model, now)
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(states[number][k])) for k in state)


# ---- checkpoints ----


def test_a_checkpoint_continues_to_the_same_bits():
    model = decoder()
    optimizer = together(model)
    scheduler = schedule(optimizer)
    for step in range(3):
        put_gradients(model, step)
        optimizer.step()
        scheduler.step()
    other = decoder()
    other.load_state_dict(model.state_dict())
    resumed = together(other)
    again = schedule(resumed)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    again.load_state_dict(scheduler.state_dict())
    for step in range(3, 7):
        for each in (model, other):
            put_gradients(each, step)
        for each in (optimizer, resumed, scheduler, again):
            each.step()
        assert_same(model, other)
        assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert {g["lr"] for g in resumed.param_groups} == {LR / 8}
    mine, theirs = optimizer.state_dict(), resumed.state_dict()
    assert mine["param_groups"] == theirs["param_groups"] and mine["state"].keys() == theirs["state"].keys()
    for number, state in mine["state"].items():
        assert state.keys() == theirs["state"][number].keys()
        assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(theirs["state"][number][k])) for k in state)


def test_every_parameter_has_its_own_state():
    """Muon's have one moment, AdamW's two and a count."""
    model = decoder()
    optimizer = together(model)
    put_gradients(model, 0)
    optimizer.step()
    kinds = {True: {"momentum_buffer"}, False: {"step", "exp_avg", "exp_avg_sq"}}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert set(optimizer.state[parameter]) == kinds[group["use_muon"]]
    assert len(optimizer.state) == len(list(model.parameters()))


def test_a_checkpoint_is_loaded_twice():
    """What was loaded first leaves no trace."""
    model = decoder()
    optimizer = together(model)
    put_gradients(model, 0)
    optimizer.step()
    state, weights = saved(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    results = []
    for _ in range(2):
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(state))
        put_gradients(model, 1)
        optimizer.step()
        results.append(copy.deepcopy(model))
    assert_same(*results)


# ---- groups ----


def encoder(kind, **changes):
    torch.manual_seed(0)
    return kind(TunerEncoderConfig(**{**SHAPE, "type_vocab_size": 2, "position_embedding_type": "learned", **changes}))


def seq2seq(**changes):
    part = {**SHAPE, **changes}
    return TunerSeq2SeqForConditionalGeneration(
        TunerSeq2SeqConfig(encoder=dict(part), decoder=dict(part), pad_token_id=0, eos_token_id=2)
    )


MODELS = {
    "decoder": decoder,
    "decoder, untied, biases": lambda: decoder(
        tie_word_embeddings=False, lm_head_bias=True, attention_bias=True, mlp_bias=True
    ),
    "decoder, relative positions": lambda: decoder(position_embedding_type="relative", norm_type="layernorm"),
    "decoder, experts": lambda: decoder(num_local_experts=3),
    "masked, tied": lambda: encoder(TunerEncoderForMaskedLM),
    "masked, untied": lambda: encoder(TunerEncoderForMaskedLM, tie_word_embeddings=False, lm_head_bias=True),
    "pretraining": lambda: encoder(TunerEncoderForPreTraining),
    "encoder": lambda: encoder(TunerEncoderModel),
    "replaced": lambda: encoder(GeneratorAndDiscriminator),
    "pair": seq2seq,
}
HEADS = ("lm_head.", "seq_relationship.", "score.")
every_model = pytest.mark.parametrize("name", MODELS)


def kinds(model):
    """What each parameter's group is: of Muon or not, and with what decay."""
    groups = muon_groups(model, DECAY)
    return {id(p): (group["use_muon"], group["weight_decay"]) for group in groups for p in group["params"]}


@every_model
def test_every_trained_parameter_is_in_one_group(name):
    model = MODELS[name]()
    frozen = next(p for n, p in model.named_parameters() if "layers.0" in n)
    frozen.requires_grad = False
    given = [id(p) for group in muon_groups(model, DECAY) for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in model.parameters() if p is not frozen)
    assert all(group["params"] for group in muon_groups(model, DECAY))


@every_model
def test_matrices_of_blocks_are_for_muon_and_embeddings_heads_norms_and_biases_are_not(name):
    model = MODELS[name]()
    found = kinds(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    assert embeddings
    seen = set()
    for path, parameter in model.named_parameters(remove_duplicate=False):
        uses_muon, decay = found[id(parameter)]
        last = path.rpartition(".")[2]
        if id(parameter) in embeddings:
            assert (uses_muon, decay) == (False, DECAY), path
            seen.add("embedding")
        elif parameter.dim() == 1:
            assert (uses_muon, decay) == (False, 0.0), path
            seen.add(last)
        elif any(path.startswith(head) or f".{head}" in path for head in HEADS):
            assert (uses_muon, decay) == (False, DECAY), path
            seen.add("head")
        elif "layers." in path and parameter.dim() == 2:
            assert (uses_muon, decay) == (True, DECAY), path
            seen.add("matrix")
        elif parameter.dim() == 3:
            assert (uses_muon, decay) == (False, DECAY), "Muon takes matrices alone"
    assert {"embedding", "matrix", "weight"} <= seen
    together(model)  # which takes them


def test_a_tied_head_is_no_matrix_of_muon():
    model = encoder(TunerEncoderForMaskedLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert kinds(model)[id(model.lm_head.weight)] == (False, DECAY)
    pair = encoder(GeneratorAndDiscriminator)
    assert pair.generator.lm_head.weight is pair.discriminator.model.embed_tokens.weight
    assert kinds(pair)[id(pair.generator.lm_head.weight)] == (False, DECAY)


@pytest.mark.parametrize("name", ["masked, tied", "pretraining", "replaced"])
def test_only_matrices_of_blocks_are_for_muon(name):
    model = MODELS[name]()
    found = kinds(model)
    wrong = [n for n, p in model.named_parameters() if found[id(p)][0] and ".layers." not in n]
    assert not wrong
