"""One process of `test_parallel.py`: the sharded models' logits and gradients against the whole ones'.

Usage, as torchrun starts its processes: parallel_worker.py <field of DistributedConfig> <model folder>...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig
from transformers.distributed import DistributedConfig

import tuner.model
from tests.model.helpers import token_ids

AUTO = {
    "TunerDecoderForCausalLM": "AutoModelForCausalLM",
    "TunerEncoderForMaskedLM": "AutoModelForMaskedLM",
    "TunerSeq2SeqForConditionalGeneration": "AutoModelForSeq2SeqLM",
}


def compare(way: str, folder: Path) -> None:
    [name] = AutoConfig.from_pretrained(folder).architectures
    whole = getattr(tuner.model, name).from_pretrained(folder)
    auto = getattr(transformers, AUTO[name])
    sharded = auto.from_pretrained(folder, distributed_config=DistributedConfig(**{way: 2}))
    assert any(hasattr(parameter, "full_tensor") for parameter in sharded.parameters()), "nothing was sharded"
    ids = token_ids(2, 12, vocab_size=whole.get_input_embeddings().num_embeddings)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    rows = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    expected, actual = whole(**rows), sharded(**rows)
    torch.testing.assert_close(actual.logits[mask.bool()], expected.logits[mask.bool()], rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-5)
    expected.loss.backward()
    actual.loss.backward()
    gradients = {name: parameter.grad for name, parameter in sharded.named_parameters()}
    assert gradients.keys() == dict(whole.named_parameters()).keys()
    for name, parameter in whole.named_parameters():
        gradient = gradients[name]
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
    print(f"same: {folder.name}\n", end="", flush=True)


if __name__ == "__main__":
    for folder in map(Path, sys.argv[2:]):
        try:
            compare(sys.argv[1], folder)
        except Exception as error:
            error.add_note(f"It is of the model {folder.name!r}.")
            raise
    # Sharded tensors stay in torch's caches and keep gloo's threads, which abort an interpreter's exit now and then.
    torch.distributed.barrier()
    os._exit(0)
