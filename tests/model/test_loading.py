"""Saving, loading and initialising: what comes back is what went in, whatever the seed, the class or the device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

from tests.model.helpers import VOCAB_SIZE, greatest_difference, new_decoder, tiny_config, tiny_decoder, token_ids
from tests.model.test_configuration import ROPES
from tests.text.samples import train_bpe_tokenizer
from tuner.errors import ModelError
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM, TunerDecoderModel

EVERYTHING = {"attention_bias": True, "mlp_bias": True}


def assert_bitwise_equal(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Every parameter and every buffer, the non-persistent ones too."""
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(model, kind)()) for model in (one, other))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reloaded_is_bitwise_equal(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """Under two seeds: weights drawn anew after loading (transformers issue 46620) would differ between them."""
    model = tiny_decoder(tie_word_embeddings=tied, dtype=dtype, **EVERYTHING)
    assert model.dtype == dtype
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    for seed in (1, 2):
        torch.manual_seed(seed)
        reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert type(reloaded) is TunerDecoderForCausalLM
        assert not any(report.values()), report
        assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) == tied
        assert_bitwise_equal(reloaded, model)
        assert torch.equal(reloaded(token_ids(2, 9)).logits, model(token_ids(2, 9)).logits)
        assert not reloaded.training


def test_auto_classes_know_the_family(tmp_path: Path) -> None:
    assert type(AutoConfig.for_model("tuner_decoder")) is TunerDecoderConfig
    assert type(AutoModel.from_config(tiny_config())) is TunerDecoderModel
    assert type(AutoModelForCausalLM.from_config(tiny_config())) is TunerDecoderForCausalLM
    tiny_decoder().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["TunerDecoderForCausalLM"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_base_model_from_the_folder_of_the_whole(tied: bool, tmp_path: Path) -> None:
    model = tiny_decoder(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    base, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is TunerDecoderModel
    assert not report["missing_keys"]
    assert_bitwise_equal(base, model.model)
    ids = token_ids(2, 9)
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_whole_model_from_the_folder_of_the_base(tmp_path: Path) -> None:
    """Tied, nothing is missing. Untied, the head is new, is reported, and is the only thing that is new."""
    for tied, missing in ((True, set()), (False, {"lm_head.weight"})):
        model = tiny_decoder(tie_word_embeddings=tied)
        model.model.save_pretrained(tmp_path)
        whole, report = TunerDecoderForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert set(report["missing_keys"]) == missing
        assert_bitwise_equal(whole.model, model.model)
        if not tied:
            assert whole.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_built_on_the_meta_device(rope: dict[str, Any], tmp_path: Path) -> None:
    """No tensor is made by hand: nothing but shapes there, and the rotary tables, which no file holds, right after."""
    overrides = {"rope_parameters": rope, "tie_word_embeddings": False, **EVERYTHING}
    with torch.device("meta"):
        empty = TunerDecoderForCausalLM(tiny_config(**overrides))
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    model = tiny_decoder(**overrides)
    assert {name: p.shape for name, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    model.save_pretrained(tmp_path)
    reloaded = TunerDecoderForCausalLM.from_pretrained(tmp_path)  # which builds on the meta device too
    assert_bitwise_equal(reloaded, model)
    assert reloaded.model.rotary_emb.attention_scaling == model.model.rotary_emb.attention_scaling
    assert torch.equal(reloaded(token_ids(2, 40)).logits, model(token_ids(2, 40)).logits)


def test_every_tensor_is_a_parameter_or_a_buffer_that_is_not_saved() -> None:
    model = tiny_decoder(**EVERYTHING)
    assert model.state_dict().keys() == {*dict(model.named_parameters()), "lm_head.weight"}
    loose = [
        (name, key)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert loose == []


def test_asked_for_in_bfloat16(tmp_path: Path) -> None:
    """Every weight rounded once; the rotary frequencies stay in float32."""
    model = tiny_decoder(**EVERYTHING)
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.config.dtype == torch.bfloat16
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).bfloat16()), name
    assert torch.equal(half.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert greatest_difference(half(token_ids(2, 9)).logits, model(token_ids(2, 9)).logits) < 0.2


def test_in_shards(tmp_path: Path) -> None:
    model = tiny_decoder()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_bitwise_equal(AutoModelForCausalLM.from_pretrained(tmp_path), model)


def test_generation_configuration_travels(tmp_path: Path) -> None:
    model = tiny_decoder(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.generation_config.update(temperature=0.3, do_sample=True)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (reloaded.temperature, reloaded.pad_token_id, reloaded.eos_token_id) == (0.3, 0, 2)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_missing_tensor_is_initialised_alone(name: str, tmp_path: Path) -> None:
    model = tiny_decoder()
    kept = {key: tensor for key, tensor in model.state_dict().items() if key not in (name, "lm_head.weight")}
    model.save_pretrained(tmp_path, state_dict=kept)
    reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {name}
    for key, parameter in reloaded.named_parameters():
        if key != name:
            assert torch.equal(parameter, model.get_parameter(key)), key
        elif "norm" in key:
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
def test_initial_weights(initializer_range: float) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 300, "tie_word_embeddings": False}
    config = tiny_config(initializer_range=initializer_range, pad_token_id=7, **shape, **EVERYTHING)
    model = TunerDecoderForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(initializer_range, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.1 * initializer_range, name
    padding = model.model.embed_tokens.weight[7]
    assert (padding == 0).all()
    kurtosis = (model.lm_head.weight / initializer_range).pow(4).mean().item()
    assert kurtosis == pytest.approx(3.0, rel=0.1)  # a normal's, not a uniform's 1.8


def test_initial_weights_follow_torch_seed() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(TunerDecoderForCausalLM(tiny_config()))
    assert_bitwise_equal(models[0], models[1])
    assert not torch.equal(models[0].model.embed_tokens.weight, models[2].model.embed_tokens.weight)
    # And the first loss is that of knowing nothing: ln(vocabulary).
    ids = token_ids(4, 32)
    assert models[0](ids, labels=ids).loss.item() == pytest.approx(torch.tensor(VOCAB_SIZE).log().item(), rel=0.02)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [VOCAB_SIZE + 19, VOCAB_SIZE - 30])
def test_resized_embeddings(tied: bool, size: int, tmp_path: Path) -> None:
    model = tiny_decoder(tie_word_embeddings=tied)
    kept, ids = min(size, VOCAB_SIZE), token_ids(2, 9, vocab_size=VOCAB_SIZE - 30)
    before = model(ids).logits
    assert model.resize_token_embeddings(size).weight.shape[0] == size
    assert model.config.vocab_size == model.vocab_size == size
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    outputs = model(ids, labels=ids)
    assert outputs.logits.shape[-1] == size and outputs.loss.isfinite()
    assert greatest_difference(outputs.logits[..., :kept], before[..., :kept]) <= 1e-6
    model.save_pretrained(tmp_path)
    assert_bitwise_equal(AutoModelForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("use_qk_norm", [True, False])
def test_plans_name_real_modules(use_qk_norm: bool) -> None:
    model = tiny_decoder(use_qk_norm=use_qk_norm)
    modules = {re.sub(r"layers\.\d", "layers.*", name) for name, _ in model.named_modules()}
    norms = {f"model.layers.*.self_attn.{name}_norm" for name in "qk"} if use_qk_norm else set()
    expected = {name for name in modules if name.endswith("_proj")} | norms | {"model.embed_tokens", "lm_head"}
    assert model.tp_plan.keys() == expected <= modules
    assert set(model.tp_plan.values()) <= set(ALL_PARALLEL_STYLES)
    assert model.pp_plan.keys() == {"lm_head", "model.embed_tokens", "model.layers", "model.norm"}
    assert model.pp_plan.keys() <= modules
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    assert {type(layer).__name__ for layer in layers["model.layers"]} == set(model._no_split_modules)
    for name in model.fsdp_plan:
        assert model.get_submodule(name.replace("*", "0")) is not None


def test_a_new_decoder_fits_its_tokenizer() -> None:
    tokenizer = train_bpe_tokenizer(["The quick brown fox."] * 3, vocab_size=280)
    torch.manual_seed(0)
    model = new_decoder("tiny", tokenizer, max_length=4096)
    config = model.config
    assert (config.vocab_size, config.max_position_embeddings) == (len(tokenizer), 4096)
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == special
    generation = model.generation_config
    assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == special
    assert model.dtype == torch.float32 and config._attn_implementation == "sdpa"
    assert new_decoder("tiny", tokenizer, max_length=16).config.max_position_embeddings == 2048


def test_fields_of_a_new_model() -> None:
    tokenizer = train_bpe_tokenizer(["The quick brown fox."] * 3, vocab_size=280)
    overrides = "hidden_act=relu2, mlp_type=plain,num_hidden_layers=2,use_qk_norm=false,rope_parameters=null"
    config = new_decoder("tiny", tokenizer, 64, config_overrides=overrides).config
    assert (config.hidden_act, config.mlp_type, config.num_hidden_layers) == ("relu2", "plain", 2)
    assert config.use_qk_norm is False and config.hidden_size == 256


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        ("hiden_act=relu", "hiden_act=relu: .* Did you mean hidden_act"),
        ("hidden_act", "field=value"),
        ("vocab_size=9", "but vocab_size"),
        ("hidden_act=nope", "hidden_act 'nope' is none of"),
        ("num_hidden_layers=many", "num_hidden_layers.*expected int"),
        ("num_attention_heads=3", "must be a multiple"),
        ("hidden_act=[", "hidden_act=\\["),
    ],
)
def test_fields_that_no_model_has(overrides, wrong) -> None:
    tokenizer = train_bpe_tokenizer(["The quick brown fox."] * 3, vocab_size=280)
    with pytest.raises(ModelError, match=wrong):
        new_decoder("tiny", tokenizer, 64, config_overrides=overrides)
