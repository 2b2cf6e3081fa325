"""A GGUF file is dequantised once; what is kept has the same bits."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from tests.recipes import equal
from tuner.errors import ModelError
from tuner.loading.checkpoints import load_pretrained, resolve
from tuner.text import gguf as gguf_file
from tuner.text.load_tokenizer import load_pretrained_tokenizer

WIDTH, INNER, LAYERS, VOCAB = 64, 96, 2, 50


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A small Llama as GGUF, its matrices in 8 bits, and an empty cache."""
    monkeypatch.setattr(gguf_file, "HF_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(VOCAB)
    sizes = {"attn_q": (64, WIDTH), "attn_k": (32, WIDTH), "attn_v": (32, WIDTH), "attn_output": (WIDTH, 64),
             "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}  # fmt: skip
    matrices = {f"blk.{n}.{name}.weight": size for n in range(LAYERS) for name, size in sizes.items()}
    for name, size in {"token_embd.weight": (VOCAB, WIDTH), **matrices}.items():
        values = rng.standard_normal(size, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ["output_norm", *(f"blk.{n}.{norm}" for n in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", rng.standard_normal(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(file, dtype=torch.float32, kind=AutoModelForCausalLM):
    return load_pretrained(kind, str(file), dtype)


def folders(file):
    return sorted(path.name for path in (file.parent / "home" / "tuner").iterdir())


@pytest.fixture
def dequantised(monkeypatch):
    """Counts how often transformers was given the GGUF file."""
    calls = []
    real = AutoModelForCausalLM.from_pretrained.__func__

    def counting(cls, path, **options):
        calls.append("gguf_file" in options)
        return real(cls, path, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", classmethod(counting))
    return lambda: sum(calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_load_has_the_bits_of_the_first(file, dtype, dequantised):
    direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    first, second = load(file, dtype), load(file, dtype)
    assert dequantised() == 2, "one by this test, one by the first load"
    for model in (first, second):
        assert equal(model.state_dict(), direct.state_dict()) and model.dtype == dtype
        assert not hasattr(model.config, "quantization_config") and not getattr(model, "is_quantized", False)
        for mine, theirs in ((model.config, direct.config), (model.generation_config, direct.generation_config)):
            drop = {"quantization_config", "architectures", "transformers_version", "_name_or_path", "dtype"}
            one, other = ({k: v for k, v in c.to_dict().items() if k not in drop} for c in (mine, theirs))
            assert one == other
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(first.eval()(ids).logits, second.eval()(ids).logits)


def test_what_the_weights_depend_on_has_a_folder_of_its_own(file, dequantised):
    load(file)
    load(file, torch.bfloat16)
    load(file, kind=AutoModel)
    assert len(folders(file)) == 3 and all(name.startswith("small-") for name in folders(file))
    changed = bytearray(file.read_bytes())
    changed[-20:] = bytes(20)
    file.write_bytes(changed)
    before = dequantised()
    load(file)
    assert dequantised() == before + 1


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no configuration", "empty"])
def test_a_damaged_copy_is_made_anew(file, damage, dequantised):
    first = load(file)
    (folder,) = (file.parent / "home" / "tuner").iterdir()
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    lost = {"no weights": "model.safetensors", "no configuration": "config.json", "empty": "*"}
    for name in [lost[damage]] if damage in lost else []:
        for path in folder.glob(name):
            path.unlink()
    assert equal(load(file).state_dict(), first.state_dict())
    assert dequantised() == 2
    assert equal(load(file).state_dict(), first.state_dict())
    assert dequantised() == 2, "and is whole again"


def test_a_cache_that_cannot_be_written_is_a_warning(file, monkeypatch):
    (file.parent / "file").write_text("no folder")
    monkeypatch.setattr(gguf_file, "HF_HOME", str(file.parent / "file"))
    with pytest.warns(UserWarning, match="not kept for the next time"):
        model = load(file)
    assert model.dtype == torch.float32


def test_another_process_was_faster(file):
    """What it has written is there, whole; nothing else is left."""
    model = load(file)
    (folder,) = (file.parent / "home" / "tuner").iterdir()

    def not_yet(folder):
        raise FileNotFoundError(folder)

    gguf_file.read_once(file, f"AutoModelForCausalLM {torch.float32}", lambda: model, not_yet)
    assert folders(file) == [folder.name] and equal(load(file).state_dict(), model.state_dict())


@pytest.mark.parametrize("kept", [0, 3, 30, 300, 3000, -100])
def test_a_broken_file_is_one_message_and_leaves_nothing(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"small.gguf could not be loaded: .") as caught:
        load(file)
    assert "\n" not in str(caught.value) and not (file.parent / "home").exists()


@pytest.mark.long
def test_the_built_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "HF_HOME", str(tmp_path))
    path, how = resolve("builtin:smollm2-135m-instruct")
    direct = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **how).state_dict()
    for _ in range(2):
        found = load_pretrained(AutoModelForCausalLM, "builtin:smollm2-135m-instruct", torch.bfloat16)
        assert equal(found.state_dict(), direct)


@pytest.mark.long
def test_its_tokenizer_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "HF_HOME", str(tmp_path))
    path, how = resolve("builtin:smollm2-135m-instruct")
    first, second = (load_pretrained_tokenizer(path, "chatml", **how) for _ in range(2))
    assert second.name_or_path.startswith(str(tmp_path)) and len(list((tmp_path / "tuner").iterdir())) == 1
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert first.special_tokens_map == second.special_tokens_map and first.chat_template == second.chat_template
