"""Every method where there is a card: it runs by a card's default settings, to a CPU's losses, to the same bits again.

The card is imitated; `tensor.py` says what that can show and what not.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.gpu.recipes import SCALED
from tests.processes import run_python
from tests.recipes import KILLER, assert_same_run, equal, eval_losses_of, losses_of
from tuner.data.sources import load_splits

SIZE = "num_hidden_layers=2,num_attention_heads=4,intermediate_size=128,hidden_size=64"
NEW = f"--preset tiny --vocab_size 400 --config_overrides {SIZE},num_key_value_heads=2"
ENCODER = f"--preset tiny --vocab_size 400 --config_overrides {SIZE},num_key_value_heads=4"
BRIEF = "--max_steps 3 --logging_steps 1 --test_split_size 8 --per_device_train_batch_size 4"
SHORT = f"{BRIEF} --max_length 48"
SUMS, PAIRS = "--dataset_name builtin:sums", "--dataset_name builtin:chitchat-pairs --max_length 96 --max_labels_lost 1"
SFT = f"{SUMS} {SHORT}"
EXACT = f"{SUMS} --reward_funcs tuner.rl.verify.exact_answer"
ROLLOUTS = f"{BRIEF} --response_length 6 --gradient_accumulation_steps 2 --eval_steps 2 --save_steps 2"
TEXTS = f"--dataset_name builtin:chitchat-small {SHORT}"
CLASSES = f"--dataset_name QUESTIONS {SHORT}"
QUOTES = f"--dataset_name builtin:bbc-quotes {SHORT} --max_length 96 --doc_stride 8"

METHODS = {
    "pretrain": [
        f"--objective clm --train_tokenizer bpe {NEW} {TEXTS}",
        *(f"--objective {name} --train_tokenizer wordpiece {ENCODER} {TEXTS}" for name in ("mlm+nsp", "rtd")),
        f"--objective contrastive --train_tokenizer wordpiece {ENCODER} {TEXTS}",
        f"--objective denoise --train_tokenizer unigram {ENCODER} {TEXTS}",
    ],
    "sft": [
        f"{NEW} {SFT} --fp16 true",
        f"{NEW} {SFT} --dtype bfloat16 --full_determinism true",
        f"{NEW},attention_type=performer {SFT} --packing false --full_determinism true",
        f"{NEW} {SFT} --optim muon --activation_checkpointing true",
        f"{NEW},num_local_experts=4,num_experts_per_tok=2 {SFT} --packing false",
        f"--model_name_or_path DECODER {SFT} --use_peft true --peft_type prefix_tuning",
        f"--model_name_or_path DECODER {SFT} --use_peft true --peft_type ia3",
    ],
    "lora": [
        f"--model_name_or_path DECODER {SFT} --lora_layers upper",
        f"--model_name_or_path DECODER {SFT} --init_lora_weights pissa --use_dora true",
    ],
    "dpo": [
        f"--model_name_or_path DECODER {PAIRS} {BRIEF}",
        f"--model_name_or_path DECODER {PAIRS} {BRIEF} --loss_type kto --use_peft true",
    ],
    "reward": [
        f"--model_name_or_path DECODER {PAIRS} {BRIEF} --ensemble 2 --center_rewards_coefficient 0.01",
        f"--model_name_or_path ENCODER --chat_template_path bert {PAIRS} {BRIEF}",
    ],
    "ppo": [
        f"--model_name_or_path DECODER {SUMS} {ROLLOUTS} --reward_model_path REWARD --kl_target 6",
        f"--model_name_or_path DECODER {EXACT} {ROLLOUTS} --use_peft true --rollout copy --value_warmup_steps 1",
        f"--model_name_or_path DECODER {EXACT} {ROLLOUTS} --use_peft true --lora_layers upper --whiten_rewards true",
        f"--model_name_or_path DECODER {EXACT} {ROLLOUTS} --advantage rloo --kl_in_loss true",
    ],
    "classify": [
        f"--model_name_or_path ENCODER {CLASSES} --strategy full --calibrate true",
        f"--model_name_or_path ENCODER {CLASSES} --strategy head",
        f"--model_name_or_path ENCODER {CLASSES} --strategy fewshot",
        f"--model_name_or_path DECODER {CLASSES} --strategy lora",
        f"--model_name_or_path ENCODER --dataset_name builtin:bbc-names {SHORT} --strategy full",
        f"--model_name_or_path ENCODER {QUOTES} --strategy full",
    ],
    "seq2seq": [f"{ENCODER} --dataset_name builtin:chitchat-punctuation {SHORT} --max_predict_samples 4"],
    "evaluate": ["--model_name_or_path DECODER --max_eval_samples 4"],
}


def command(flags: str, folder: Path) -> list[str]:
    recipe, *rest = flags.split()
    return [f"recipes/{recipe}.py", *rest, "--output_dir", str(folder)]


def on_card(flags: str, folder: Path, *before: str | Path) -> Path:
    """Run a recipe to its end on the imitated card; its folder."""
    waits = folder.with_name(f"{folder.name}-waits.json")
    done = run_python("-m", "tests.card", "--waits", waits, *before, *command(flags, folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert waits_of(folder), "it was not on the card"
    return folder


def waits_of(folder: Path) -> Counter[str]:
    """How often the host waited for the card in a run, by line."""
    return Counter(json.loads(folder.with_name(f"{folder.name}-waits.json").read_text(encoding="utf-8")))


def on_cpu(flags: str, folder: Path) -> Path:
    done = run_python(*command(flags, folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the recipes begin with, by the name that stands for it in their flags."""
    folder = tmp_path_factory.mktemp("models")
    on_card(f"sft {NEW} {SFT}", folder / "DECODER")
    on_card(f"pretrain --objective mlm --train_tokenizer wordpiece {ENCODER} {TEXTS}", folder / "ENCODER")
    on_card(f"reward --model_name_or_path {folder / 'DECODER'} {PAIRS} {BRIEF}", folder / "REWARD")
    turns = [turn["content"] for row in load_splits("builtin:chitchat-small")[0] for turn in row["messages"]]
    rows = [{"text": turn, "label": "question" if turn.endswith("?") else "none"} for turn in turns[:60]]
    (folder / "QUESTIONS").with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {path.stem: str(path) for path in folder.iterdir()}


def named(flags: str, models: dict[str, str]) -> str:
    return " ".join(models.get(word, word) for word in flags.split())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [f"{recipe} {flags}" for recipe, runs in METHODS.items() for flags in runs])
def test_it_runs(flags, models, tmp_path):
    file = on_card(named(flags, models), tmp_path / "run") / "metrics.json"
    if not flags.startswith("evaluate"):
        assert json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # NaN or infinite


def test_losses_are_those_of_the_cpu(tmp_path):
    """In float32: attention adds up in another order there."""
    flags = f"sft {NEW} {SFT} --bf16 false --eval_strategy steps --eval_steps 2"
    there, here = on_card(flags, tmp_path / "there"), on_cpu(flags, tmp_path / "here")
    for losses in (losses_of, eval_losses_of):
        assert losses(there)
        assert losses(there) == pytest.approx(losses(here), rel=1e-4)


def test_completions_are_those_of_the_cpu(tmp_path):
    model = on_cpu(f"sft {NEW} {SFT}", tmp_path / "model")
    flags = f"ppo --model_name_or_path {model} {EXACT} {ROLLOUTS} --bf16 false"
    there, here = on_card(flags, tmp_path / "there"), on_cpu(flags, tmp_path / "here")
    samples = [(folder / "completions.jsonl").read_text(encoding="utf-8").splitlines() for folder in (there, here)]
    # Of the untrained model: the first steps of Adam make much of a gradient's last bits.
    said = [[row["completion"] for row in map(json.loads, lines) if row["step"] == 0] for lines in samples]
    assert said[0]
    assert said[0] == said[1]


def test_a_step_waits_for_the_card_no_more_than_it_must(tmp_path):
    """A micro-batch twice: transformers asks whether its rows are packed, and the loss which tokens count. A step once:
    is all finite?"""
    flags = f"sft {NEW} {SFT} --gradient_accumulation_steps 2 --logging_steps 100 --save_strategy no --eval_strategy no"
    two, four = (waits_of(on_card(f"{flags} --max_steps {steps}", tmp_path / str(steps))) for steps in (2, 4))
    more = Counter[str]()
    for line, count in (four - two).items():
        more[line.split(":")[0]] += count // 2
    assert more == {"tuner/model/stack.py": 2, "tuner/ops/chunked_loss.py": 2, "tuner/train/trainer.py": 1}, four - two


def test_float16_goes_on_after_its_first_overflows(tmp_path):
    scaled = tmp_path / "scaled.py"
    scaled.write_text(SCALED, encoding="utf-8")
    losses = losses_of(on_card(f"sft {NEW} {SFT} --fp16 true --max_steps 24", tmp_path / "run", scaled))
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_a_killed_run_goes_on_to_the_same_bits(method, models, tmp_path):
    """Its card's random numbers too: of a run with dropout."""
    how = {
        "sft": f"sft {NEW} {SFT} --packing false --dropout 0.1 --max_steps 6 --save_steps 2",
        "ppo": f"ppo --model_name_or_path DECODER {EXACT} {ROLLOUTS} --value_warmup_steps 1",
    }
    flags = f"{named(how[method], models)} --resume_from_checkpoint true"
    whole = on_card(flags, tmp_path / "whole")
    point = {"sft": "step:3", "ppo": "step:2"}[method]
    killed = run_python("-m", "tests.card", KILLER, point, *command(flags, tmp_path / "killed"))
    assert killed.returncode < 0, killed.stderr[-2000:]
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    on_card(flags, tmp_path / "killed")
    if method == "sft":
        assert_same_run(tmp_path / "killed", whole)
    else:  # whose log has the seconds of each phase
        for load, name in ((load_file, "model.safetensors"), (torch.load, "checkpoint-3/optimizer.pt")):
            assert equal(load(whole / name), load(tmp_path / "killed" / name)), name
