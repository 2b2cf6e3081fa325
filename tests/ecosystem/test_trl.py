"""TRL's trainers on our decoder, and on our encoder where a trainer takes one, beside Llama, Mixtral and BERT.

Each runs three steps with its defaults but for sizes, on CPUs: losses are finite, a parameter moves, and what is saved
comes back with the Auto class and gives the same logits. `make test-trl-newest` runs this file with the newest TRL.
"""

import importlib
import math
import pkgutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from transformers.utils import is_liger_kernel_available

from tests.ecosystem.families import model as new_model
from tests.text.samples import train_bpe_tokenizer

TRL = "TRL " + ".".join(trl.__version__.split(".")[:2])
STEPS, BATCH = 3, 8  # the default batch of a device
# For each body: our shape, our family, the control's.
BODIES = {
    "dense": ("decoder", "tuner decoder", "llama"),
    "experts": ("decoder", "tuner experts", "mixtral"),
    "encoder": ("encoder", "tuner encoder", "bert"),
}
# Promoted: what is left there warns, and is the stable trainer.
PROMOTED = ("distillation", "kto")

COLOURS = ["red", "green", "blue", "white", "black", "brown", "pink", "grey"]
QUESTIONS = [f"What is {colour} and {other}?" for colour in COLOURS for other in COLOURS[:STEPS]]
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


def answers(text: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": f"{question} {text}"}] for question in QUESTIONS]


GOOD, BAD, REFERENCE = answers("A colour."), answers("No."), answers("A fine colour.")
COLUMNS: dict[str, dict[str, list[Any]]] = {
    "messages": {"messages": [prompt + answer for prompt, answer in zip(PROMPTS, GOOD, strict=True)]},
    "completion": {"prompt": PROMPTS, "completion": GOOD},
    "preference": {"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD},
    "triple": {"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD, "reference": REFERENCE},
    "label": {"prompt": PROMPTS, "completion": GOOD, "label": [i % 2 == 0 for i in range(len(PROMPTS))]},
    "prompt": {"prompt": PROMPTS},
    "privileged": {"prompt": PROMPTS, "privileged_context": ["A colour is light."] * len(PROMPTS)},
    "steps": {
        "prompt": QUESTIONS,
        "completions": [["It is light.", "It is a colour."]] * len(PROMPTS),
        "labels": [[True, False]] * len(PROMPTS),
    },
}


@cache
def tokenizer() -> Any:
    texts = [turn["content"] for turns in COLUMNS["messages"]["messages"] for turn in turns]
    return train_bpe_tokenizer(texts, 320)


def reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """By the letters: half of a prompt's completions are good (SDPO asks for 1), and rarely are two the same, which
    the heap of GRPOWithReplayBufferTrainer cannot order."""
    sums = [sum(map(ord, one if isinstance(one, str) else one[-1]["content"])) for one in completions]
    return [total % 2 + total % 97 / 1000 for total in sums]


@dataclass
class Method:
    """A trainer, what it learns from, and what it needs beside a model and rows."""

    trainer: str
    columns: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    package: str = ""  # under `trl.experimental`
    head: str = "CausalLM"
    bodies: tuple[str, ...] = ("dense",)
    note: str = ""
    slow: bool = False  # a sample, in CI
    not_run: str = ""

    @property
    def what(self) -> str:
        return (f"{self.package}." if self.package else "") + self.trainer + (f", {self.note}" if self.note else "")


def stable(trainer: str, columns: str, note: str = "", needs: tuple[str, ...] = (), slow: bool = False, **options: Any):
    return Method(trainer, columns, options, needs, bodies=("dense", "experts"), note=note, slow=slow)


def experimental(package: str, trainer: str, columns: str, *needs: str, **options: Any):
    return Method(trainer, columns, options, needs, package)


SHORT = {"max_completion_length": 8}
REWARD = ("reward_funcs",)
TEACHER = ("teacher_model",)
HEADS = ("dense", "experts", "encoder")
BALANCED = ("SFTTrainer", "DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer")  # add the experts' balance
METHODS = [
    stable("SFTTrainer", "messages", slow=True),
    stable("SFTTrainer", "messages", "packing", packing=True, max_length=64),
    stable("SFTTrainer", "messages", "padding_free", padding_free=True, max_length=None),
    stable("SFTTrainer", "completion", "completion_only_loss", completion_only_loss=True),
    stable("SFTTrainer", "messages", "assistant_only_loss", assistant_only_loss=True),
    stable("SFTTrainer", "messages", "use_liger_kernel", use_liger_kernel=True),
    stable("DPOTrainer", "preference", slow=True),
    stable("KTOTrainer", "label"),
    stable("GRPOTrainer", "prompt", needs=REWARD, slow=True, **SHORT),
    stable("RLOOTrainer", "prompt", needs=REWARD, **SHORT),
    stable("DistillationTrainer", "prompt", needs=TEACHER, **SHORT),
    Method("RewardTrainer", "preference", head="SequenceClassification", bodies=HEADS, slow=True),
    experimental("a2po", "A2POTrainer", "prompt", *REWARD, **SHORT),
    experimental("bco", "BCOTrainer", "label"),
    experimental("bema_for_ref_model", "DPOTrainer", "preference", "bema"),
    experimental("cpo", "CPOTrainer", "preference"),
    experimental("gkd", "GKDTrainer", "messages", *TEACHER, max_new_tokens=8),
    experimental("gmpo", "GMPOTrainer", "prompt", *REWARD, **SHORT),
    experimental("gold", "GOLDTrainer", "messages", *TEACHER, **SHORT),
    experimental("grpo_with_replay_buffer", "GRPOWithReplayBufferTrainer", "prompt", *REWARD, **SHORT),
    experimental(
        *("gspo_token", "GRPOTrainer", "prompt", *REWARD), importance_sampling_level="sequence_token", **SHORT
    ),
    experimental("iw_opd", "IWOPDTrainer", "messages", *TEACHER, **SHORT),
    experimental("minillm", "MiniLLMTrainer", "prompt", *TEACHER, **SHORT),
    experimental("nash_md", "NashMDTrainer", "prompt", "judge", max_new_tokens=8),
    experimental("online_dpo", "OnlineDPOTrainer", "prompt", *REWARD, max_new_tokens=8),
    experimental("orpo", "ORPOTrainer", "preference"),
    experimental("ppo", "PPOTrainer", "prompt", "ppo", total_episodes=STEPS * BATCH, response_length=8),
    Method("PRMTrainer", "steps", package="prm", head="TokenClassification", bodies=("dense", "encoder")),
    experimental("sdft", "SDFTTrainer", "privileged", **SHORT),
    experimental("sdpo", "SDPOTrainer", "privileged", *REWARD, **SHORT),
    experimental("ssd", "SSDTrainer", "prompt", **SHORT),
    experimental("tpo", "TPOTrainer", "triple"),
    experimental("xpo", "XPOTrainer", "prompt", "judge", max_new_tokens=8),
    *(
        Method(trainer, package=package, not_run="needs vLLM's server")
        for package, trainer in (
            ("async_distillation", "AsyncDistillationTrainer"),
            ("async_grpo", "AsyncGRPOTrainer"),
            ("server_distillation", "ServerDistillationTrainer"),
        )
    ),
]


def cases() -> list[Any]:
    """Every trainer with every body, ours and the control."""
    found = []
    for method in METHODS:
        for body in method.bodies:
            for shape in (BODIES[body][0], "control"):
                what = method.what + (", experts" if body == "experts" else "")
                group = pytest.mark.slow if method.slow and body != "experts" else pytest.mark.long
                marks = [pytest.mark.tool(TRL, what), pytest.mark.suite, group]
                found.append(pytest.param(method, body, shape, marks=marks, id=f"{method.what}-{body}-{shape}"))
    return found


def saved_model(folder: Any, body: str, shape: str, head: str, seed: int = 0, **options: Any) -> Any:
    """A model from a saved folder, as a user has it: TRL loads the reference model from where the model came."""
    _, ours, control = BODIES[body]
    auto, sizes = f"AutoModelFor{head}", {"vocab_size": len(tokenizer()), "max_position_embeddings": 512}
    ids = {f"{role}_token_id": getattr(tokenizer(), f"{role}_token_id") for role in ("pad", "bos", "eos")}
    family = control if shape == "control" else ours
    new_model(family, auto, seed=seed, **sizes, **ids, **options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return getattr(transformers, auto).from_pretrained(folder)


def parts(needs: tuple[str, ...], folder: Any, body: str, shape: str) -> dict[str, Any]:
    """What a trainer is given beside a model and rows."""
    found: dict[str, Any] = {}

    def scorer(name: str, seed: int) -> Any:
        return saved_model(folder / name, body, shape, "SequenceClassification", seed, num_labels=1)

    for need in needs:
        if need == "teacher_model":
            found[need] = saved_model(folder / "teacher", body, shape, "CausalLM", seed=1)
        elif need == "reward_funcs":
            found[need] = reward
        elif need == "judge":
            found["reward_funcs"] = scorer("reward", 1)
        elif need == "ppo":
            found |= {"ref_model": None, "reward_model": scorer("reward", 1), "value_model": scorer("value", 2)}
        elif need == "bema":
            callback = importlib.import_module("trl.experimental.bema_for_ref_model").BEMACallback
            found["callbacks"] = [callback(update_freq=1, update_ref_model=True, ref_model_update_freq=1)]
    return found


def rows(method: Method) -> Dataset:
    dataset = Dataset.from_dict(COLUMNS[method.columns])
    if method.trainer != "PPOTrainer":
        return dataset
    # It takes token ids, and collates nothing else.
    render = tokenizer().apply_chat_template
    return dataset.map(
        lambda row: {"input_ids": render(row["prompt"], add_generation_prompt=True, return_dict=False)},
        remove_columns="prompt",
    )


def loaded(method: Method) -> tuple[Any, Any]:
    """The trainer and its arguments' class, or the test is skipped where there is none."""
    if method.not_run:
        pytest.skip(method.not_run)
    if method.options.get("use_liger_kernel") and not is_liger_kernel_available():
        pytest.skip("liger-kernel is not installed")
    name = f"trl.experimental.{method.package}" if method.package else "trl"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        pytest.skip("gone")
    config = method.trainer.replace("Trainer", "Config")
    return getattr(module, method.trainer), getattr(module, config, None) or getattr(
        trl, config
    )  # a variant: DPO, GRPO


@pytest.mark.parametrize(("method", "body", "shape"), cases())
def test_trainer(method: Method, body: str, shape: str, tmp_path: Any) -> None:
    trainer_class, config_class = loaded(method)
    labels = {"SequenceClassification": {"num_labels": 1}, "TokenClassification": {"num_labels": 2}}
    model = saved_model(tmp_path / "model", body, shape, method.head, **labels.get(method.head, {}))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = config_class(
        output_dir=str(tmp_path / "run"),
        **{"max_steps": STEPS, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True},
        **{"use_cpu": True, "bf16": False, "logging_nan_inf_filter": False},
        **method.options,
    )
    trainer = trainer_class(
        model=model,
        args=arguments,
        processing_class=tokenizer(),
        train_dataset=rows(method),
        **parts(method.needs, tmp_path, body, shape),
    )
    trainer.train()

    logs = trainer.state.log_history
    losses = [value for log in logs for name, value in log.items() if name == "loss" or name.startswith("loss/")]
    assert len(losses) >= STEPS and all(map(math.isfinite, losses)), logs
    balances = [log["aux_loss"] for log in logs if "aux_loss" in log]
    assert bool(balances) == (body == "experts" and method.trainer in BALANCED)
    assert all(1.9 < balance < 4 for balance in balances), "2 where two of four experts are chosen evenly"
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved

    trainer.save_model(str(tmp_path / "saved"))
    again = getattr(transformers, f"AutoModelFor{method.head}").from_pretrained(tmp_path / "saved").eval()
    ids = torch.tensor([tokenizer().encode(QUESTIONS[0])])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


@pytest.mark.suite
@pytest.mark.long
def test_every_trainer_is_in_the_table() -> None:
    known = {(method.package, method.trainer) for method in METHODS}
    folder = importlib.import_module("trl.experimental").__path__
    packages = {"", *(module.name for module in pkgutil.iter_modules(folder))} - set(PROMOTED)
    found = set()
    for package in packages:
        module = importlib.import_module(f"trl.experimental.{package}" if package else "trl")
        found |= {(package, name) for name in dir(module) if name.endswith("Trainer")}
    assert found <= known
