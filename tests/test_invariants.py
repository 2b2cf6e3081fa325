"""What must not change a result: how a batch is cut, packed, padded or spread over processes."""

import shutil
from functools import partial

import pytest
import torch

import tuner.ops.block_attention  # noqa: F401  (registers the attention that is asked for by name)
from tests.engine import use_chunked_loss
from tests.recipes import NANO, SMALL, eval_losses_of, launch_recipe, losses_of, run_recipe
from tuner.data.collate import collate_causal
from tuner.data.pack import pack_dataset
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM

EXACT = [*SMALL, *NANO, "--bf16", "false", "--max_steps", "6", "--logging_steps", "1", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def encoded():
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(40):
        ids = torch.randint(
            5, 100, (int(torch.randint(3, 60, (1,), generator=generator)),), generator=generator
        ).tolist()
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]], "rows": [index]})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "block_attention"])
def test_packed_equals_padded_joined_and_alone(encoded, attn_implementation):
    """Loss and logits of conversations in one block are those of each by itself."""
    torch.manual_seed(0)
    config = TunerDecoderConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = TunerDecoderForCausalLM._from_config(config, attn_implementation=attn_implementation).eval()
    collate, join = (partial(collate_causal, pad_token_id=0, padding_free=joined) for joined in (False, True))
    packed = pack_dataset(encoded, 64)
    batch = collate([packed[i] for i in range(len(packed))])
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        padded = collate([encoded[i] for i in range(len(encoded))])
        side_by_side = model(input_ids=padded["input_ids"]).logits
        for block, (ids, rows) in enumerate(zip(packed["input_ids"], packed["rows"], strict=True)):
            start = 0
            for row in rows:
                alone_ids = encoded[row]["input_ids"]
                length = len(alone_ids)
                assert ids[start : start + length] == alone_ids
                alone = model(input_ids=torch.tensor([alone_ids])).logits[0]
                assert (together[block, start : start + length] - alone).abs().max() < 1e-5
                assert (side_by_side[row, :length] - alone).abs().max() < 1e-5
                start += length
        use_chunked_loss(model)
        count = int((padded["labels"] != -100).sum())
        losses = [
            model(
                input_ids=b["input_ids"],
                position_ids=b.get("position_ids"),
                labels=b["labels"],
                num_items_in_batch=count,
            ).loss
            for b in (
                batch,
                padded,
                join([packed[i] for i in range(len(packed))]),
                join([encoded[i] for i in range(len(encoded))]),
            )
        ]
    assert max(losses) - min(losses) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["true", "false"])
def test_eight_micro_batches_of_one_are_one_batch_of_eight(chats, tmp_path, packing):
    flags = ["--dataset_name", chats, *EXACT, "--packing", packing]
    for name, size, steps in (("one", 8, 1), ("eight", 1, 8)):
        done = run_recipe(
            *flags,
            "--per_device_train_batch_size",
            str(size),
            "--gradient_accumulation_steps",
            str(steps),
            "--output_dir",
            tmp_path / name,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, eight = losses_of(tmp_path / "one"), losses_of(tmp_path / "eight")
    assert len(one) == 6 and one == pytest.approx(eight, abs=1e-5)


@pytest.mark.slow
def test_two_processes_are_one(chats, tmp_path):
    flags = ["--dataset_name", chats, *EXACT]
    done = run_recipe(*flags, "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "one")
    assert done.returncode == 0, done.stderr[-2000:]
    few = ("--per_device_train_batch_size", "4")
    done = launch_recipe(2, *flags, *few, "--output_dir", tmp_path / "two", fresh=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), abs=1e-5)
    assert eval_losses_of(tmp_path / "one") == pytest.approx(eval_losses_of(tmp_path / "two"), abs=1e-5)


@pytest.mark.slow
def test_two_processes_resume_to_the_same_losses(chats, tmp_path):
    """A whole run loses what came after its third step, and makes it again."""
    flags = [
        "--dataset_name",
        chats,
        *EXACT,
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
        "--per_device_train_batch_size",
        "4",
        "--dropout",
        "0.1",
        "--resume_from_checkpoint",
        "true",
        "--output_dir",
    ]
    assert launch_recipe(2, *flags, tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoint-6")
    (tmp_path / "half" / "metrics.json").unlink()
    done = launch_recipe(2, *flags, tmp_path / "half")
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses_of(tmp_path / "half") == losses_of(tmp_path / "whole")
