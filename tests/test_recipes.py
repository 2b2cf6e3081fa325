"""Recipes as their users run them, with the losses they gave when they were last looked at."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

import tuner.model  # noqa: F401
from tests.recipes import (
    NANO,
    SMALL,
    assert_same_run,
    eval_loss_of,
    losses_of,
    metrics_of,
    run_recipe,
    untrained_loss_of,
)
from tests.text.templates import tokenizer_of
from tuner.text.chat import answer_end

pytestmark = pytest.mark.slow

# float32, 12 steps, logged every 3, seed 42. Other CPUs sum in another order: hence a tolerance, but a small one.
PINNED = {"packed": [6.1957, 5.8053, 5.625, 5.5454], "padded": [6.1977, 5.8708, 5.6839, 5.5993]}


@pytest.fixture(scope="module", params=PINNED)
def finished(request, chats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / request.param
    how = ["--packing", str(request.param == "packed").lower(), "--train_sampling_strategy", "group_by_length"]
    done = run_recipe("--dataset_name", chats, *SMALL, *how, "--bf16", "false", "--output_dir", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return request.param, folder, done


def test_the_losses_are_the_pinned_ones(finished):
    name, folder, _ = finished
    assert losses_of(folder) == pytest.approx(PINNED[name], rel=1e-3)


def test_the_folder_holds_what_the_readme_says(finished):
    _, folder, done = finished
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "metrics.json",
        "loss.png",
        "run.yaml",
        "samples.md",
    ):
        assert (folder / name).stat().st_size > 0, name
    metrics = metrics_of(folder)
    assert eval_loss_of(folder) < untrained_loss_of(folder)
    assert (
        metrics["steps"] == 12 and metrics["speed"]["tokens_per_second"] > 0 and 0 < metrics["speed"]["peak_share"] < 1
    )
    assert "untrained" in done.stdout and "unigram" in done.stdout and f"tuner chat {folder}" in done.stdout


def test_the_model_loads_and_generates(finished):
    _, folder, _ = finished
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_every_parameter_moved(finished):
    _, folder, _ = finished
    trained = AutoModelForCausalLM.from_pretrained(folder)
    from transformers import set_seed

    from tests.model.helpers import new_decoder

    set_seed(42)
    fresh = new_decoder("tiny", AutoTokenizer.from_pretrained(folder), 256)
    for (name, before), after in zip(fresh.named_parameters(), trained.parameters(), strict=True):
        assert not torch.equal(before, after), name


@pytest.mark.parametrize("finished", ["packed"], indirect=True)
def test_run_yaml_is_the_same_run_again(finished, tmp_path):
    _, folder, _ = finished
    done = run_recipe("--config", folder / "run.yaml", "--output_dir", tmp_path / "again")
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses_of(tmp_path / "again") == losses_of(folder)


def test_bfloat16_weights_learn_as_float32_ones_do_and_resume_exactly(chats, tmp_path):
    # Few tokens: where bfloat16 is imitated a step takes many times as long.
    small = ["--per_device_train_batch_size", "1", "--max_steps", "9", "--eval_strategy", "no"]
    small += [*NANO, "--learning_rate", "1e-2", "--resume_from_checkpoint", "true"]
    flags = ["--dataset_name", chats, *SMALL, *small, "--dtype"]
    for dtype in ("float32", "bfloat16"):
        done = run_recipe(*flags, dtype, "--output_dir", tmp_path / dtype)
        assert done.returncode == 0, done.stderr[-2000:]
    assert losses_of(tmp_path / "bfloat16") == pytest.approx(losses_of(tmp_path / "float32"), rel=0.02)
    assert run_recipe(*flags, "bfloat16", "--output_dir", tmp_path / "killed", kill_at="step:5").returncode == -9
    assert run_recipe(*flags, "bfloat16", "--output_dir", tmp_path / "killed").returncode == 0
    assert_same_run(tmp_path / "bfloat16", tmp_path / "killed")


def test_smoothed_labels_are_those_of_the_next_tokens(chats, tmp_path):
    """Smoothed over the tokens themselves, as transformers does it of a loss it does not know, nothing is learnt."""
    flags = ["--dataset_name", chats, *SMALL, *NANO, "--bf16", "false", "--label_smoothing_factor", "0.1"]
    done = run_recipe(*flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert eval_loss_of(tmp_path / "run") < untrained_loss_of(tmp_path / "run") - 0.1
    assert losses_of(tmp_path / "run")[-1] < losses_of(tmp_path / "run")[0] - 0.1


def test_a_dry_run_shows_the_plan_and_writes_nothing(chats, tmp_path):
    flags = ["--dataset_name", chats, *SMALL, "--dry_run", "--hub_token", "hf_secret"]
    done = run_recipe(*flags, "--output_dir", tmp_path / "none")
    assert done.returncode == 0, done.stderr[-2000:]
    for text in (
        "Resolved arguments",
        "supervised",
        "truncated",
        "feed-forward",
        "memory: optimizer",
        "time of the steps",
    ):
        assert text in done.stdout, text
    assert "hub_token" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["llama3_1", "qwen3"])
def test_a_template_without_marks_trains_and_is_saved_as_it_came(name, chats, tmp_path):
    """By rendering, and by TRL's training version."""
    tokenizer = tokenizer_of(name)
    tokenizer.save_pretrained(tmp_path / "model")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    flags = ["--model_name_or_path", tmp_path / "model", "--dataset_name", chats, *SMALL[2:], "--max_steps", "3"]
    planned = run_recipe(*flags, "--dry_run")
    assert planned.returncode == 0, planned.stderr[-2000:]
    assert {"llama3_1": "with and without each answer", "qwen3": "TRL's training version"}[name] in " ".join(
        planned.stdout.split()
    )
    done = run_recipe(*flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert saved.chat_template == tokenizer.chat_template
    assert answer_end(tokenizer) in GenerationConfig.from_pretrained(tmp_path / "run").eos_token_id


def test_a_new_model_with_chatml(chats, tmp_path):
    flags = ["--chat_template_path", "chatml", "--eos_token", "<|im_end|>", "--dataset_name", chats, *SMALL, *NANO]
    done = run_recipe(*flags, "--max_steps", "3", "--max_labels_lost", "0.2", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == saved.eos_token_id
