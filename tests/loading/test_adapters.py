"""Adapters: which weights learn and in which type, what is saved, and that it comes back, merged or not."""

from __future__ import annotations

import argparse

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, Llama4TextConfig, LlamaConfig, MambaConfig

from tests.text.test_load_tokenizer import bare_tokenizer
from tuner.config.adapters import AdapterArguments
from tuner.config.arguments import parse_arguments
from tuner.errors import ArgumentError, ModelError
from tuner.estimate.model import Operations, parameters_by_component
from tuner.loading.adapters import add_adapter, quantise, save_merged, start_from_data
from tuner.loading.chat_model import load_chat_model
from tuner.loading.checkpoints import difference, load_pretrained, pretrained_decoder, with_adapter
from tuner.model import TunerDecoderConfig
from tuner.ops.block_attention import BLOCK_ATTENTION
from tuner.text.load_tokenizer import load_pretrained_tokenizer
from tuner.train.adapters import LowerHalf

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = pytest.mark.parametrize("family", [TunerDecoderConfig, LlamaConfig])


def base(tmp_path, family=LlamaConfig, **shape):
    """A saved model and its tokenizer."""
    folder = bare_tokenizer(tmp_path / "base", "</s>", "<pad>", eos_token="</s>", pad_token="<pad>")
    size = len(load_pretrained_tokenizer(folder))
    config = family(**(SHAPE | shape), vocab_size=size, initializer_range=0.3, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def adapted(folder, half=False, eos_token=None, **flags):
    args = AdapterArguments(model_name_or_path=folder, use_peft=True, eos_token=eos_token, **flags)
    tokenizer = load_pretrained_tokenizer(folder, eos_token=eos_token)
    return add_adapter(pretrained_decoder(folder, tokenizer), args, tokenizer, half), tokenizer


def trained(model):
    """As after some training: every new weight is another."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@FAMILIES
def test_a_new_adapter_changes_nothing_and_half_of_it_is_frozen(family, tmp_path):
    folder = base(tmp_path, family)
    plain = load_pretrained(AutoModelForCausalLM, folder, torch.float32)
    model, _ = adapted(folder)
    assert difference(plain, model) == 0
    model, _ = adapted(folder, half=True)
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert all("lora" in name for name, p in model.named_parameters() if p.requires_grad)
    assert {name.split(".")[-4] for name, p in model.named_parameters() if "lora_A" in name} >= {"q_proj", "down_proj"}


@FAMILIES
@pytest.mark.parametrize(
    "flags",
    [{}, {"use_dora": True}, {"use_rslora": True, "lora_r": 4}, {"init_lora_weights": "pissa"}, {"peft_type": "ia3"}],
    ids=str,
)
def test_saved_it_comes_back_and_merges(family, flags, tmp_path):
    folder = base(tmp_path, family)
    model, tokenizer = adapted(folder, **flags)
    trained(model).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    again = with_adapter(load_pretrained(AutoModelForCausalLM, folder, torch.float32), str(tmp_path / "run"))
    assert difference(model, again) < 1e-5
    assert save_merged(tmp_path / "run") < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    assert type(merged).__name__ == type(model.get_base_model()).__name__ and difference(model, merged) < 1e-4
    # A run, `tuner generate` and `tuner convert` take the adapter's folder as a model too.
    assert difference(load_pretrained(AutoModelForCausalLM, str(tmp_path / "run"), torch.float32), merged) == 0


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_prompts_and_prefixes(kind, tmp_path):
    folder = base(tmp_path)
    model, tokenizer = adapted(folder, peft_type=kind, num_virtual_tokens=3)
    trained(model).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    again = with_adapter(load_pretrained(AutoModelForCausalLM, folder, torch.float32), str(tmp_path / "run"))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(model.eval()(ids).logits, again.eval()(ids).logits, atol=1e-5)


def test_a_new_end_token_is_learnt_and_saved(tmp_path):
    folder = base(tmp_path)
    model, tokenizer = adapted(folder, eos_token="<|stop|>")
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    rows = [name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]
    assert rows and all("trainable_tokens" in name for name in rows)
    trained(model).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    again = with_adapter(load_pretrained(AutoModelForCausalLM, folder, torch.float32), str(tmp_path / "run"))
    ids = torch.tensor([[5, 6, tokenizer.eos_token_id]])
    assert torch.allclose(model.eval()(ids).logits, again.eval()(ids).logits, atol=1e-5)


def test_adapters_are_switched(tmp_path):
    folder = base(tmp_path)
    for name in ("one", "two"):
        model, tokenizer = adapted(folder)
        torch.manual_seed(len(name))
        trained(model).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    sampling = {"max_new_tokens": 4, "temperature": 0, "top_p": 1.0, "top_k": 0, "seed": 0}
    chat = load_chat_model(
        argparse.Namespace(model=folder, adapter=[str(tmp_path / "one"), str(tmp_path / "two")], **sampling)
    )
    plain = load_pretrained(AutoModelForCausalLM, folder, torch.float32)
    assert difference(plain, chat.model.float()) > 1e-3
    assert chat.switch("none") == "Adapter: none." and difference(plain, chat.model) == 0
    assert chat.switch("two") == "Adapter: two." and chat.model.active_adapter == "two"
    assert difference(plain, chat.model) > 1e-3
    assert chat.switch("three") == "There is no adapter 'three': one, two, none."


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"lora_r": 4}, "--lora_r: it is for --use_peft"),
        ({"merge": True}, "--merge: it is for --use_peft"),
        ({"use_peft": True, "peft_type": "ia3", "lora_r": 4}, "--lora_r: --peft_type ia3 has no use for it"),
        ({"use_peft": True, "num_virtual_tokens": 4}, "--num_virtual_tokens: --peft_type lora has no use"),
        ({"use_peft": True, "peft_type": "prompt_tuning", "merge": True}, "--merge: a prompt_tuning is no change"),
        ({"use_peft": True}, "--use_peft: an adapter belongs to a saved model"),
        ({"use_peft": True, "model_name_or_path": "x", "own_model": True}, "--own_model: convert the checkpoint first"),
    ],
)
def test_what_has_no_effect_is_refused(flags, reason):
    with pytest.raises(ArgumentError, match=reason):
        AdapterArguments(**flags)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            {"load_in_4bit": True, "init_lora_weights": "pissa"},
            "--load_in_4bit: --init_lora_weights pissa computes with",
        ),
        ({"eos_token": "<|stop|>", "init_lora_weights": "eva"}, "--eos_token: .* --init_lora_weights eva cannot be"),
        ({"eos_token": "<|stop|>", "lora_layers": "upper"}, "--eos_token: .* --lora_layers upper cannot be"),
        ({"frozen_states_gib": 1.0}, "--frozen_states_gib: --peft_type lora has no use"),
        ({"peft_type": "ia3", "lora_layers": "upper"}, "--lora_layers: --peft_type ia3 has no use"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, reason):
    with pytest.raises(ArgumentError, match=reason):
        AdapterArguments(use_peft=True, model_name_or_path="x", **flags)


@FAMILIES
def test_the_upper_half_alone(family, tmp_path):
    model, _ = adapted(base(tmp_path, family), lora_layers="upper")
    learnt = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learnt and all(".layers.1." in name for name in learnt)
    assert {name.split(".")[-4] for name in learnt} >= {"q_proj", "down_proj"}


@pytest.mark.parametrize("flags", [{}, {"lora_layers": "upper"}, {"load_in_4bit": True}], ids=str)
def test_what_a_kernel_reads_is_left_alone(flags, tmp_path):
    """Mamba's kernels take the weights of its mixer's later layers past an adapter, and PEFT refuses some of them."""
    if flags.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes")
    model, _ = adapted(base(tmp_path, MambaConfig, hidden_size=64, state_size=8), **flags)
    assert {name.split(".")[-4] for name, p in model.named_parameters() if "lora_A" in name} == {"in_proj"}
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    modules = [(name, type(m).__module__) for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"]
    packed = {name.split(".")[-2] for name, of in modules if of.startswith("bitsandbytes")}  # PEFT's are called so too
    assert packed == ({"in_proj"} if "load_in_4bit" in flags else set())


def test_a_linear_layer_that_computes_what_others_do_gets_an_adapter(tmp_path):
    """Falcon's has a forward pass of its own."""
    model, _ = adapted(base(tmp_path, FalconConfig))
    learnt = {name.split(".")[-4] for name, p in model.named_parameters() if "lora_A" in name}
    assert learnt == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_a_layer_with_a_forward_pass_of_its_own_is_left_alone(tmp_path):
    """Llama 4's router is a linear layer that returns a pair."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64, "head_dim": 16}
    model, _ = adapted(base(tmp_path, Llama4TextConfig, num_key_value_heads=2, **experts))
    learnt = {name.split(".")[-4] for name, p in model.named_parameters() if "lora_A" in name}
    assert "router" not in learnt and learnt >= {"q_proj", "o_proj"}
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model(input_ids=ids, labels=ids).loss.backward()


@FAMILIES
def test_the_lower_half_is_taken_from_what_is_given(family, tmp_path):
    """Another lower half's output gives another result, its own the very same, in the backward pass too."""
    model, _ = adapted(base(tmp_path, family), lora_layers="upper", lora_r=2)
    half = LowerHalf(trained(model).eval())
    ids = torch.tensor([[5, 6, 7, 8], [4, 3, 2, 1]])
    with torch.no_grad():
        assert half.why_not({"input_ids": ids}) is None
        states = half({"input_ids": ids})
    gradients = []
    for given in ({}, {"frozen_states": states}, {"frozen_states": states.roll(1, 0)}):
        model.zero_grad()
        model(input_ids=ids, labels=ids, **given).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, gradients[0], gradients[1])) and not all(map(torch.equal, gradients[0], gradients[2]))
    with torch.no_grad():  # nothing is left of what was given
        assert torch.equal(half({"input_ids": ids}), states)


@pytest.mark.parametrize("attention", ["sdpa", BLOCK_ATTENTION])
@FAMILIES
def test_the_lower_half_tells_joined_sequences_apart(family, attention, tmp_path):
    """Of two sequences in one row each gets what it gets alone."""
    model, _ = adapted(base(tmp_path, family), lora_layers="upper")
    model.set_attn_implementation(attention)
    half = LowerHalf(model.eval())
    sequences = [[5, 6, 7, 8, 9], [4, 3, 2]]
    ids = torch.tensor([[*sequences[0], *sequences[1]]])
    places = torch.cat([torch.arange(len(ids)) for ids in sequences])[None]
    with torch.no_grad():
        joined = half({"input_ids": ids, "position_ids": places})[0].split([5, 3])
        for one, found in zip(sequences, joined, strict=True):
            torch.testing.assert_close(found, half({"input_ids": torch.tensor([one])})[0])


def test_a_lower_half_that_changes_is_not_kept(tmp_path):
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    model, _ = adapted(base(tmp_path), lora_layers="upper", lora_modules_to_save=["embed_tokens"])
    assert LowerHalf(model).why_not(inputs) == "something below the upper half is trained"
    model, _ = adapted(base(tmp_path), lora_layers="upper")
    model.config.attention_dropout = 0.1
    assert "attention_dropout" in LowerHalf(model).why_not(inputs)


def eva(folder, checkpoint=None, label=5, rank=4, rows=4):
    model, tokenizer = adapted(folder, init_lora_weights="eva", lora_r=rank, half=True)
    ids = torch.randint(1, 50, (3, rows, 16), generator=torch.Generator().manual_seed(0))
    batches = ({"input_ids": one, "labels": torch.full_like(one, label)} for one in ids)
    start_from_data(model, batches, checkpoint)
    return model, tokenizer


@FAMILIES
def test_a_start_from_data(family, tmp_path):
    """It changes nothing yet, is a function of the data, and a run that is continued takes its shapes from the
    checkpoint; saved it comes back."""
    folder = base(tmp_path, family)
    (model, tokenizer), (again, _) = eva(folder), eva(folder)
    start = peft.get_peft_model_state_dict(model)
    assert all(map(torch.equal, start.values(), peft.get_peft_model_state_dict(again).values()))
    ranks = {weight.shape[0] for name, weight in start.items() if "lora_A" in name}
    assert len(ranks) > 1 and all(not w.any() for name, w in start.items() if "lora_B" in name)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    trained(model).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    continued, _ = eva(folder, tmp_path / "run", label=-100)
    loaded = peft.get_peft_model_state_dict(continued)
    assert {name: w.shape for name, w in loaded.items()} == {name: w.shape for name, w in start.items()}
    assert continued.peft_config["default"].alpha_pattern == model.peft_config["default"].alpha_pattern
    assert save_merged(tmp_path / "run") < 1e-4


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"label": -100}, "no batch has the 8 tokens"),
        ({"rank": 20, "rows": 8}, "n_components=40 invalid"),
    ],
)
def test_a_start_that_the_data_does_not_give(how, reason, tmp_path):
    with pytest.raises(ModelError, match=f"--init_lora_weights eva: {reason}"):
        eva(base(tmp_path), **how)


def test_four_bits_without_their_package(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="--load_in_4bit true needs a package: pip install bitsandbytes"):
        quantise(torch.nn.Linear(2, 2), [], torch.float32)


def test_four_bits_of_a_block_and_no_less(tmp_path):
    """A row that is shorter than a block would be unpacked with another row's constant, on some CPUs."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, _ = adapted(base(tmp_path), load_in_4bit=True)
    packed = [name for name, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 2 and all("down_proj" in name for name in packed)
    plain = load_pretrained(AutoModelForCausalLM, str(tmp_path / "base"), torch.float32)
    assert 0 < difference(plain, model) < 0.5


@FAMILIES
@pytest.mark.parametrize("flags", [{}, {"use_dora": True}, {"peft_type": "ia3"}, {"lora_layers": "upper"}], ids=str)
def test_four_bits(family, flags, tmp_path):
    """The layers' weights, of any model; the adapter over them learns, is saved alone, and merges with all the bits."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    folder = base(tmp_path, family, hidden_size=64)
    model, tokenizer = adapted(folder, load_in_4bit=True, **flags)
    plain = load_pretrained(AutoModelForCausalLM, folder, torch.float32)
    packed = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer"): m.weight
        for name, m in model.named_modules()
        if isinstance(m, bitsandbytes.nn.Linear4bit)
    }
    assert len(packed) == 14 and "lm_head" not in packed
    for name, weight in packed.items():
        whole = plain.get_submodule(name).weight
        error = bitsandbytes.functional.dequantize_4bit(weight, weight.quant_state) - whole
        assert 0 < error.norm() / whole.norm() < 0.12  # NF4 of normal numbers: 0.09
    assert model.num_parameters() == adapted(folder, **flags)[0].num_parameters()
    assert sum(parameters_by_component(model).values()) == model.num_parameters()
    assert Operations.of(model) == Operations.of(adapted(folder, **flags)[0])
    ids, losses = torch.tensor([[5, 6, 7, 8, 9]]), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for step in range(8):
        if step == 4:
            model.eval()(ids)  # an evaluation in between leaves the gradient as it is
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    assert save_merged(tmp_path / "run") < 1e-4
    merged = load_pretrained(AutoModelForCausalLM, str(tmp_path / "run" / "merged"), torch.float32)
    assert not any(p.dtype == torch.uint8 for p in merged.parameters())


def test_layers_that_are_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"--peft_type lora: Target modules .*nothing"):
        adapted(base(tmp_path), lora_target_modules=["nothing"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere"}')
    with pytest.raises(ModelError, match="could not be loaded"):
        with_adapter(
            load_pretrained(AutoModelForCausalLM, str(tmp_path / "base"), torch.float32), str(tmp_path / "broken")
        )


def test_an_empty_list_is_read_as_it_is_written(tmp_path):
    """As run.yaml has it: no layers to save, or PEFT's own targets."""
    (tmp_path / "run.yaml").write_text(
        "use_peft: true\nmodel_name_or_path: x\nlora_modules_to_save: []\nlora_target_modules: []\n"
    )
    args = parse_arguments(AdapterArguments, ["--config", str(tmp_path / "run.yaml")])
    assert (args.lora_modules_to_save, args.lora_target_modules) == ([], [])
    args.model_name_or_path = base(tmp_path)
    tokenizer = load_pretrained_tokenizer(args.model_name_or_path)
    model = add_adapter(pretrained_decoder(args.model_name_or_path, tokenizer), args, tokenizer, half=False)
    assert {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name} == {"q_proj", "v_proj"}
