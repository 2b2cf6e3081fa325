"""Arguments: every field is a flag and a line of YAML, has a help text, and reaches transformers."""

import dataclasses
import os
import subprocess
import sys
import typing

import pytest
import yaml
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from tests.config.test_flags import from_yaml, parse
from tests.recipes import ROOT, environment
from tuner.config.arguments import PATHS, SECRET, RecipeArguments, parse_arguments
from tuner.config.recipes import arguments_of, find_recipe
from tuner.errors import ArgumentError

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/*.yaml"))


def other_value(field: dataclasses.Field) -> object:
    """A value that the field may have and that is not its default."""
    hint = typing.get_type_hints(RecipeArguments)[field.name]
    if type(None) in typing.get_args(hint):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != field.default)
    if typing.get_origin(hint) is list:
        return ["one", "two"] if typing.get_args(hint) == (str,) else [0.25, 0.5]
    return {bool: field.default is not True, int: 17, float: 0.75, str: "some words"}[hint]


FIELDS = dataclasses.fields(RecipeArguments)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_line_of_yaml_is_a_flag(tmp_path, field):
    value = other_value(field)
    words = list(map(str, value)) if isinstance(value, list) else [str(value)]
    flags, none = parse(f"--{field.name}", *words), parse()
    assert getattr(flags, field.name) == value
    assert from_yaml(tmp_path, yaml.safe_dump({field.name: value})) == flags
    assert flags != none, "nothing else tells them apart"
    follows = {"learning_rate"} if field.name == "model_name_or_path" else set()
    assert {k for k, v in flags.values().items() if v != none.values()[k]} == {field.name} | follows


def test_what_a_run_writes_down_is_the_same_run(tmp_path):
    values = {field.name: other_value(field) for field in FIELDS} | {
        "learning_rate": 2e-05,
        "resume_from_checkpoint": "false",
    }
    arguments = from_yaml(tmp_path, yaml.safe_dump(values), "--adam_beta2", "0.95", "--hub_model_id", "007")
    again = from_yaml(tmp_path, yaml.safe_dump(arguments.values(), sort_keys=True))
    assert again.values() == arguments.values() == values | {"adam_beta2": 0.95, "hub_model_id": "007"}


def test_fields_of_transformers_are_passed_on():
    arguments = parse("--adam_beta2", "0.95", "--learning_rate", "0.5", "--lr_scheduler_kwargs", '{"num_cycles": 2}')
    assert arguments.extra.keys() == {"adam_beta2", "lr_scheduler_kwargs"}
    assert arguments.values()["adam_beta2"] == 0.95
    training = arguments.to_training_arguments(use_cpu=True)
    assert (training.adam_beta2, training.learning_rate) == (0.95, 0.5)
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    plain = parse().to_training_arguments(use_cpu=True)
    assert (plain.adam_beta1, plain.learning_rate, plain.seed) == (0.9, 1e-3, 42)


@pytest.mark.parametrize(("recipe", "pretrained", "new"), [("sft", 2e-5, 1e-3), ("pretrain", 1e-4, 1e-3)])
def test_the_rate_depends_on_whether_the_model_is_new(recipe, pretrained, new):
    kind = arguments_of(ROOT / "recipes" / f"{recipe}.py")
    assert parse_arguments(kind, ["--preset", "tiny"]).learning_rate == new
    assert parse_arguments(kind, ["--model_name_or_path", "somewhere"]).learning_rate == pretrained
    assert parse_arguments(kind, ["--model_name_or_path", "somewhere", "--learning_rate", "3e-4"]).learning_rate == 3e-4


def test_fine_tuning_without_flags_is_of_a_pretrained_model():
    kind = arguments_of(ROOT / "recipes" / "sft.py")
    bare = parse_arguments(kind, [])
    assert (bare.model_name_or_path, bare.dataset_name) == ("builtin:smollm2-135m-instruct", ["builtin:chitchat-small"])
    assert bare.learning_rate == 2e-5
    for flag in (["--preset", "small"], ["--vocab_size", "300"], ["--config_overrides", "hidden_size=64"]):
        assert parse_arguments(kind, flag).model_name_or_path is None


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_its_recipes(path):
    recipe = find_recipe(path)
    assert parse_arguments(arguments_of(recipe), ["--config", str(path)]).output_dir.startswith(f"runs/{recipe.stem}/")
    command = path.read_text().partition("\n")[0]
    assert command.startswith("# accelerate launch ")
    assert command.endswith(f"recipes/{recipe.name} --config {path.relative_to(ROOT)}")


@pytest.mark.parametrize("argv", [("--optim", "nope"), ("--lr_scheduler_type", "nope"), ("--warmup_steps", "-1")])
def test_what_transformers_refuses_is_an_argument_error(argv):
    with pytest.raises(ArgumentError, match=argv[1]):
        parse(*argv).to_training_arguments(use_cpu=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_help_lists_every_field(recipe):
    kind = arguments_of(recipe)
    command = [sys.executable, str(recipe), "--help"]
    # Wide, so that nothing is broken over lines.
    done = subprocess.run(command, env=environment(COLUMNS="10000"), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    for field in dataclasses.fields(kind):
        text = field.metadata["help"]
        assert len(text.split()) > 1 or field.name == "optim", f"{field.name} has no help text"
        assert text.endswith(".") or "..." in text
        assert f"--{field.name} " in shown
        assert text in shown
    assert sys.modules[kind.__module__].__doc__.split("\n")[0] in shown


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_is_read_by_its_recipe(config):
    relative = os.path.relpath(config, ROOT)
    first = config.read_text(encoding="utf-8").split("\n")[0]
    assert first.startswith("# accelerate launch ")
    assert f" recipes/{config.parent.name}.py --config {relative}" in first
    arguments = parse_arguments(arguments_of(ROOT / "recipes" / f"{config.parent.name}.py"), ["--config", str(config)])
    assert arguments.output_dir.startswith("runs/")
    arguments.to_training_arguments(use_cpu=True, bf16=False)


def test_defaults_are_not_shared():
    one, other = parse(), parse()
    one.report_to.append("tensorboard")
    assert other.report_to == parse().report_to == ["none"]


def test_a_secret_is_neither_written_nor_shown(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    arguments = from_yaml(tmp_path, "hub_token: hf_secret\nhub_model_id: me/model\n")
    assert "hub_token" not in arguments.saved() and arguments.shown()["hub_token"] == "***"
    assert arguments.saved() == {k: v for k, v in arguments.values().items() if k != "hub_token"}
    training = arguments.to_training_arguments(use_cpu=True)
    assert training.hub_token is None and os.environ["HF_TOKEN"] == "hf_secret", "the arguments are saved as they are"
    with pytest.raises(ArgumentError) as caught:
        parse("--hub_token", "hf_secret", "--accelerator_config", "x").to_training_arguments(use_cpu=True)
    assert "hf_secret" not in str(caught.value)
    assert "hub_token" not in parse().shown()


def test_which_flags_are_secret():
    from transformers import TrainingArguments

    names = {f.name for f in dataclasses.fields(TrainingArguments)} | {f.name for f in FIELDS}
    assert {name for name in names if SECRET.search(name)} == {"hub_token"}
    assert all(SECRET.search(name) for name in ("api_key", "password", "token", "client_secret"))


@pytest.mark.parametrize("name", [name for name in PATHS if name in {f.name for f in FIELDS}])
def test_the_home_directory_is_one_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", "/home/me")
    for arguments in (from_yaml(tmp_path, f"{name}: ~/x"), parse(f"--{name}=~/x")):
        assert arguments.values()[name] == "/home/me/x"
    assert parse(f"--{name}", "a/~/b").values()[name] == "a/~/b"
    with pytest.raises(ArgumentError, match=f"--{name} ~nobody_here/x"):
        parse(f"--{name}", "~nobody_here/x")


def test_a_file_of_flags_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("seed: 7\ndeepspeed: ~/ds.json\n")
    arguments = parse("--config", "~/run.yaml")
    assert arguments.seed == 7 and arguments.extra == {"deepspeed": f"{tmp_path}/ds.json"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--optim", "nope"), "--optim nope: nope is not a valid OptimizerNames"),
        (("--lr_scheduler_type", "nope"), "--lr_scheduler_type nope: nope is not a valid SchedulerType"),
        (("--accelerator_config", "x.json"), "--accelerator_config x.json: [Errno 2] No such file"),
        (("--deepspeed", "x.json"), "--deepspeed x.json: "),
        (("--fsdp", "nonsense"), "--fsdp nonsense: Unknown `fsdp` option: nonsense"),
        (("--lr_scheduler_kwargs", "{"), "--lr_scheduler_kwargs {: Expecting property name"),
        (("--logging_steps", "0"), "logging strategy IntervalStrategy.STEPS requires non-zero --logging_steps"),
    ],
)
def test_what_transformers_refuses_names_the_flag(argv, message):
    with pytest.raises(ArgumentError) as caught:
        parse(*argv).to_training_arguments(use_cpu=True)
    unset_hf_deepspeed_config()  # which lives as long as what was raised, and every model that is made then asks it
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
