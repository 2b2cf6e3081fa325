"""What transformers and torch refuse only when they build what trains is refused at the start, by the flag's name."""

import importlib.metadata
import re

import pytest
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from tests.config.test_flags import parse
from tests.recipes import run_recipe
from tuner.errors import ArgumentError
from tuner.optim.check import check_training, schedule_kwargs

# Needs no package and no accelerator.
OPTIMIZERS = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
INSTALLED = {re.split(r"[-_.]", d.name.lower())[0] for d in importlib.metadata.distributions() if d.name}

REFUSED = {
    ("--optim", "adamw_8bit"): "--optim adamw_8bit: You need to install `bitsandbytes`",
    ("--optim", "galore_adamw"): "--optim galore_adamw: You need to install `galore_torch`",
    ("--optim", "galore_adamw", "--optim_target_modules", "attn"): "--optim galore_adamw: You need to install",
    ("--optim_args", "x"): "--optim adamw_torch_fused --optim_args x: ",
    ("--lr_scheduler_type", "cosine_with_min_lr"): "--lr_scheduler_type cosine_with_min_lr (its options go into "
    "--lr_scheduler_kwargs): One of min_lr",
    ("--lr_scheduler_type", "polynomial", "--learning_rate", "0"): "--lr_scheduler_type polynomial (its options go "
    "into --lr_scheduler_kwargs): lr_end",
    ("--lr_scheduler_kwargs", '{"nope": 1}'): "--lr_scheduler_type cosine --lr_scheduler_kwargs {'nope': 1}: ",
    ("--lr_scheduler_kwargs", '{"num_cycles": "x"}'): "--lr_scheduler_type cosine --lr_scheduler_kwargs {'num",
    ("--lr_scheduler_kwargs", "x"): "--lr_scheduler_kwargs: expected JSON",
    ("--gradient_checkpointing_kwargs", "x"): "--gradient_checkpointing_kwargs: expected JSON",
    ("--learning_rate", "-1"): "--learning_rate: expected a number of at least 0, not -1.0",
    ("--adam_beta1", "1"): "--adam_beta1: expected a number of at least 0 and below 1, not 1.0",
    ("--adam_epsilon", "-1"): "--adam_epsilon: expected a number of at least 0",
    ("--dataloader_num_workers", "-1"): "--dataloader_num_workers: expected a number of at least 0",
    ("--eval_accumulation_steps", "0"): "--eval_accumulation_steps: expected a number of at least 1",
    ("--fp16", "true"): "--fp16 needs an accelerator",
    ("--fsdp", "full_shard"): "--fsdp needs several processes",
    ("--torch_compile_backend", "nope"): "--torch_compile_backend nope: not here.",
}


def training(*argv):
    return parse(*argv).to_training_arguments(use_cpu=True, bf16=False)


@pytest.mark.parametrize("argv", REFUSED, ids=" ".join)
def test_refused(argv):
    if any(word in INSTALLED for word in re.findall(r"`(\w+?)(?:_torch)?`", REFUSED[argv])):
        pytest.skip("it is installed here")
    with pytest.raises(ArgumentError) as caught:
        check_training(training(*argv))
    assert str(caught.value).startswith(REFUSED[argv]) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optimizer_is_built_or_refused(name):
    try:
        check_training(training("--optim", name))
    except ArgumentError as error:
        assert name not in OPTIMIZERS and str(error).startswith(f"--optim {name}: ")


@pytest.mark.parametrize("name", [name.value for name in SchedulerType])
@pytest.mark.parametrize("steps", [(), ("--max_steps", "7"), ("--warmup_steps", "2000")], ids=str)
def test_every_schedule_is_built(name, steps):
    options = ("--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}') if "min_lr" in name else ()
    check_training(training("--lr_scheduler_type", name, *options, *steps))


def test_good_ones_pass():
    check_training(training())
    check_training(training("--optim", "muon"))
    check_training(training("--optim_args", "a=1", "--lr_scheduler_kwargs", '{"num_cycles": 2}'))


def test_the_decay_of_a_stable_schedule():
    arguments = training("--lr_scheduler_type", "warmup_stable_decay")
    assert schedule_kwargs(arguments, 70) == {"num_decay_steps": 14}, "a fifth"
    given = training("--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 3}')
    assert schedule_kwargs(given, 70) == {"num_decay_steps": 3}
    assert schedule_kwargs(training(), 70) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [("--lr_scheduler_type", "cosine_with_min_lr"), ("--learning_rate", "-1"), ("--fsdp", "full_shard")],
    ids=" ".join,
)
def test_a_run_stops_before_it_reads_data(argv, tmp_path, chats):
    done = run_recipe("--dataset_name", chats, "--output_dir", tmp_path / "run", "--use_cpu", *argv)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.rstrip().split("\n")[-1].startswith(f"error: {REFUSED[argv]}")
    assert not (tmp_path / "run").exists()
