"""Flags: a line of YAML is a flag, the command line wins, and nothing that is not known passes."""

from pathlib import Path

import pytest

from benchmarks.objectives import LONGER
from tuner.config.arguments import RecipeArguments, parse_arguments
from tuner.config.flags import read_flags
from tuner.config.ppo import PPOArguments
from tuner.config.recipes import arguments_of, find_recipe
from tuner.errors import ArgumentError

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "pretrain"


def parse(*argv: str) -> RecipeArguments:
    return parse_arguments(RecipeArguments, argv)


def from_yaml(tmp_path: Path, text: str, *argv: str) -> RecipeArguments:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return parse("--config", str(tmp_path / "run.yaml"), *argv)


@pytest.mark.parametrize(
    ("file", "argv", "left"),
    [
        ("preset: tiny\ndropout: 0.1", ["--model_name_or_path", "mine"], {"model_name_or_path": "mine"}),
        ("model_name_or_path: mine", ["--preset", "small"], {"preset": "small"}),
        ("model_name_or_path: mine", ["--model_config", "a.json"], {"model_config": "a.json"}),
        ("preset: tiny", ["--dropout", "0.1"], {"preset": "tiny", "dropout": 0.1}),
        ("max_steps: 60", ["--num_train_epochs", "3"], {"num_train_epochs": 3}),
        ("max_steps: 60", ["--num_train_epochs", "3", "--max_steps", "9"], {"num_train_epochs": 3, "max_steps": 9}),
        ("num_train_epochs: 2", ["--max_steps", "9"], {"num_train_epochs": 2, "max_steps": 9}),  # steps go first anyway
        ("max_steps: 60", ["--total_episodes", "640"], {"total_episodes": 640}),
    ],
)
def test_another_name_of_the_same_wins_over_the_file_s(tmp_path, file, argv, left):
    path = tmp_path / "flags.yaml"
    path.write_text(f"learning_rate: 1e-3\n{file}\n", encoding="utf-8")
    assert read_flags(PPOArguments, ["--config", str(path), *argv]) == {"learning_rate": 1e-3, **left}


def test_the_command_line_wins(tmp_path):
    text = "max_length: 64\npacking: false\nreport_to: [a, b]\nadam_beta2: 0.9\nadam_epsilon: 1e-6\n"
    arguments = from_yaml(tmp_path, text, "--max_length", "128", "--report_to", "c", "--adam_beta2=0.5")
    assert (arguments.max_length, arguments.packing, arguments.report_to) == (128, False, ["c"])
    assert arguments.extra == {"adam_beta2": 0.5, "adam_epsilon": 1e-6}
    assert from_yaml(tmp_path, text, "--packing").packing is True
    (tmp_path / "run.yaml").write_text(text)
    before = parse("--max_length", "128", "--config", str(tmp_path / "run.yaml"))
    assert before.max_length == 128, "wherever --config stands"
    assert parse("--max_length", "3", "--max_length", "4").max_length == 4, "a later flag wins, as in every shell"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("eval_strategy: no", "eval_strategy", "no"),  # false in YAML 1.1
        ("learning_rate: 1e-3", "learning_rate", 1e-3),  # a string in YAML 1.1
        ("output_dir: 2024-01-01", "output_dir", "2024-01-01"),  # a date
        ("output_dir: 1:30", "output_dir", "1:30"),  # the number 90
        ("output_dir: 010", "output_dir", "010"),  # the number 8
        ("output_dir: on", "output_dir", "on"),
        ("output_dir: 'null'", "output_dir", "null"),
        ('output_dir: "a # b" # c', "output_dir", "a # b"),
        ("output_dir: ''", "output_dir", ""),
        ("output_dir: häuser/😀", "output_dir", "häuser/😀"),
        ("output_dir: a=b --c d", "output_dir", "a=b --c d"),
        ("hub_model_id: -x", "hub_model_id", "-x"),
        ("hub_model_id: --max_length", "hub_model_id", "--max_length"),
        ("max_steps: -1", "max_steps", -1),
        ("max_length: 1_000", "max_length", 1000),
        ("max_length: '64'", "max_length", 64),
        ('learning_rate: "1e-3"', "learning_rate", 1e-3),
        ("packing: 'false'", "packing", False),
        ("packing: off", "packing", False),
        ("packing: No", "packing", False),
        ("packing: FALSE", "packing", False),
        ("bf16: yes", "bf16", True),
        ("packing: ~", "packing", None),
        ("packing: null", "packing", None),
        ("packing:", "packing", None),
        ("report_to: [a, b]", "report_to", ["a", "b"]),
        ("report_to:\n- a\n- no", "report_to", ["a", "no"]),
        ("report_to: one", "report_to", ["one"]),
        ("# nothing\n\nmax_length:    9   # tokens", "max_length", 9),
    ],
)
def test_a_value_is_what_is_written(tmp_path, line, name, value):
    assert getattr(from_yaml(tmp_path, line), name) == value


@pytest.mark.parametrize("word", ["true", "True", "yes", "1", "on", "TRUE"])
def test_spellings_of_true(word):
    assert parse("--overwrite_output_dir", word).overwrite_output_dir is True
    assert parse(f"--overwrite_output_dir={word}").overwrite_output_dir is True


@pytest.mark.parametrize("word", ["false", "False", "no", "0", "off"])
def test_spellings_of_false(word):
    assert parse("--packing", word).packing is False


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("learning_rte", "learning_rate"),
        ("max_seq_length", "max_length"),
        ("lr_sheduler_type", "lr_scheduler_type"),
        ("max-length", "max_length"),
        ("adam_beta3", "adam_beta2"),  # transformers' own
        ("Packing", "packing"),
        ("confg", "config"),
    ],
)
@pytest.mark.parametrize("value", ["1", None])
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path, name, suggestion, value):
    message = f"unknown flag or key '{name}'. Did you mean {suggestion}?"
    with pytest.raises(ArgumentError) as caught:
        parse("--seed", "3", f"--{name}", *([value] if value else []))
    assert str(caught.value) == message
    with pytest.raises(ArgumentError) as caught:
        from_yaml(tmp_path, f"seed: 3\n{name}: {value or 'null'}\n")
    assert str(caught.value) == f"--config {tmp_path}/run.yaml, line 2: {message}"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_length", "lots", "invalid int value: 'lots'"),
        ("max_length", "1.5", "invalid int value: '1.5'"),
        ("max_length", "true", "invalid int value: 'true'"),
        ("max_length", "1", "expected a number of at least 2, not 1"),
        ("learning_rate", "fast", "invalid float value: 'fast'"),
        ("learning_rate", "nan", "expected a number, not nan"),
        ("num_train_epochs", "inf", "expected a number of at least 0, not inf"),
        ("gradient_accumulation_steps", "0", "expected a number of at least 1, not 0"),
        ("dataset_num_proc", "-2", "expected a number of at least 1, not -2"),
        ("max_labels_lost", "1.01", "expected a number of at least 0 and of at most 1, not 1.01"),
        ("seed", "-1", "expected a number of at least 0 and of at most 4294967295, not -1"),
        ("packing", "maybe", "expected true or false, not 'maybe'"),
        ("packing", "2", "expected true or false, not '2'"),
        ("preset", "huge", "invalid choice: 'huge' (choose from 'tiny', 'small', 'base')"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(tmp_path, name, value, reason):
    with pytest.raises(ArgumentError) as caught:
        parse(f"--{name}={value}")
    assert str(caught.value) == f"--{name}: {reason}"
    with pytest.raises(ArgumentError) as caught:
        from_yaml(tmp_path, f"{name}: {value}")
    assert str(caught.value) == f"--config {tmp_path}/run.yaml, line 1: --{name}: {reason}"


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("", "", "expected 'name: value' lines, found nothing."),
        ("# only a remark\n", "", "expected 'name: value' lines, found nothing."),
        ("- seed\n- 3\n", "", "expected 'name: value' lines, found a sequence."),
        ("seed 3", "", "expected 'name: value' lines, found a scalar."),
        ("seed: [1,\npacking: true\n", ", line 3, column 1", "while parsing a flow sequence expected ',' or ']'"),
        ("seed:\n\t- 3\n", ", line 2, column 1", "while scanning for the next token found character '\\t'"),
        ("seed: 1\n  packing: true", ", line 2, column 10", "mapping values are not allowed here"),
        ("seed: 'one", ", line 1, column 11", "while scanning a quoted scalar found unexpected end of stream"),
        ("seed: 3\n---\nseed: 4", ", line 2, column 1", "expected a single document"),
        ("seed: *other", ", line 1, column 7", "found undefined alias 'other'"),
        ("seed: 3\npacking: true\nseed: 4\n", ", line 3, column 1", "the key 'seed' is there twice"),
        ("lr_scheduler_kwargs: {a: 1, a: 2}", ", line 1, column 29", "the key 'a' is there twice"),
        ("seed: 1\nmodel:\n  preset: tiny\n", ", line 2", "unknown flag or key 'model'"),
        ("seed:\n  preset: tiny\n", ", line 1", '--seed: invalid int value: \'{"preset": "tiny"}\''),
        ("seed: [1, 2]", ", line 1", "--seed: expected one value, found a list."),
        ("packing: []", ", line 1", "--packing: expected one value, found a list."),
        ("adam_beta2: [1, 2]", ", line 1", "unrecognized arguments: 2"),
        ("? [a, b]\n: 3", ", line 1", "a name must be a word, not a sequence."),
        ("? {a: b}\n: 3", ", line 1", "a name must be a word, not a mapping."),
        ("1: 3", ", line 1", "unknown flag or key '1'."),
        ("~: 3", ", line 1", "unknown flag or key '~'."),
        ("--seed: 3", ", line 1", "unknown flag or key '--seed'. Did you mean seed?"),
        ("config: other.yaml", ", line 1", "a file cannot name another with 'config'."),
        ("help: true", ", line 1", "-h/--help: ignored explicit argument 'true'"),
        ("seed: a\0b", "", "not YAML: unacceptable character #x0000"),
    ],
)
def test_a_file_that_is_not_flags_is_refused(tmp_path, text, where, reason):
    with pytest.raises(ArgumentError) as caught:
        from_yaml(tmp_path, text)
    assert str(caught.value).startswith(f"--config {tmp_path}/run.yaml{where}: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["seed"], "unexpected 'seed': a flag begins with --."),
        (["--seed", "3", "4"], "unexpected '4': a flag begins with --."),
        (["-s", "3"], "unexpected '-s': a flag begins with --."),
        (["--seed"], "--seed: expected one argument"),
        (["--config"], "--config: expected one argument"),
        (
            ["--see", "3"],
            "unknown flag or key 'see'. Did you mean seed?",
        ),  # no abbreviations
        (["--adam_beta2", "lots"], "--adam_beta2: invalid float value: 'lots'"),
        (["--adam_beta2", "nan"], "--adam_beta2: expected a number, not nan"),
        (["--label_smoothing_factor=inf"], "--label_smoothing_factor: expected a number, not inf"),
        (["--adam_beta2", "0.9", "0.8"], "unrecognized arguments: 0.8"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config: one file, not 2: a.yaml, b.yaml."),
    ],
)
def test_a_command_line_that_is_not_flags_is_refused(argv, message):
    with pytest.raises(ArgumentError) as caught:
        parse(*argv)
    assert str(caught.value) == message


def test_the_benchmark_s_checkpoints_stand_for_the_files_shapes():
    for name, flags in LONGER.items():
        config = CONFIGS / f"{name}-tiny.yaml"
        found = read_flags(arguments_of(find_recipe(config)), ["--config", str(config), *flags.split()])
        assert ("preset" in found) != ("model_name_or_path" in found), name
