"""Adapters: which weights learn and in which type, what is saved, and that it comes back, merged or not."""

from __future__ import annotations

import argparse

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.text.test_load_tokenizer import bare_tokenizer
from tuner.config.adapters import AdapterArguments
from tuner.config.arguments import parse_arguments
from tuner.errors import ArgumentError, ModelError
from tuner.loading.adapters import add_adapter, save_merged
from tuner.loading.chat_model import load_chat_model
from tuner.loading.checkpoints import difference, load_pretrained, pretrained_decoder, with_adapter
from tuner.model import TunerDecoderConfig
from tuner.text.load_tokenizer import load_pretrained_tokenizer

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = pytest.mark.parametrize("family", [TunerDecoderConfig, LlamaConfig])


def base(tmp_path, family=LlamaConfig):
    """A saved model and its tokenizer."""
    folder = bare_tokenizer(tmp_path / "base", "</s>", "<pad>", eos_token="</s>", pad_token="<pad>")
    config = family(**SHAPE, vocab_size=len(load_pretrained_tokenizer(folder)), initializer_range=0.3, eos_token_id=0)
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
