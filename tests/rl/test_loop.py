"""The run around the updates: its log, what callbacks remember, what lies in its folder from another run."""

import json
from statistics import mean

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from tests.rl.models import policy, queries, scorer, trainer
from tuner.errors import DataError
from tuner.rl.verify import exact_answer


def lines(made):
    return [entry for entry in made.state.log_history if "objective/scores" in entry]


def test_a_line_of_several_updates_has_their_means(tmp_path):
    each, some = (trainer(tmp_path / f"{n}", logging_steps=n, max_steps=5) for n in (1, 2))
    each.train()
    some.train()
    single, joined = lines(each), lines(some)
    assert [line["step"] for line in joined] == [2, 4, 5]
    assert [line["lr"] for line in joined] == [single[n]["lr"] for n in (1, 3, 4)]
    assert [line["episode"] for line in joined] == [16, 32, 40]
    for name in ("objective/scores", "objective/kl", "loss/policy_avg", "grad_norm"):
        wanted = [mean(line[name] for line in single[n : n + 2]) for n in (0, 2, 4)]
        assert [line[name] for line in joined] == pytest.approx(wanted, abs=1e-9)


class Counter(TrainerCallback, ExportableState):
    """Knows how many steps it saw."""

    def __init__(self, steps=0):
        self.steps = steps

    def on_step_end(self, *_, **__):
        self.steps += 1

    def state(self):
        return {"args": {"steps": self.steps}, "attributes": {}}


def test_a_run_that_goes_on_knows_what_it_had_not_logged_and_its_callbacks(tmp_path):
    common = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3}
    common["restore_callback_states_from_checkpoint"] = True
    whole = trainer(tmp_path, callbacks=[Counter()], **common)
    whole.train()
    again = trainer(tmp_path, callbacks=[Counter()], **common)
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    [counter] = [each for each in again.callback_handler.callbacks if isinstance(each, Counter)]
    assert counter.steps == 4
    untimed = [
        {k: v for k, v in line.items() if not k.startswith(("time/", "tokens_per_second/", "eps"))}
        for made in (whole, again)
        for line in lines(made)
    ]
    assert len(untimed) == 2
    assert untimed[0] == untimed[1]


def test_a_run_s_samples_are_not_another_run_s(tmp_path):
    common = {"eval_dataset": queries(), "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    trainer(tmp_path, max_steps=3, **common).train()
    trainer(tmp_path, max_steps=1, **common).train()
    written = (tmp_path / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in written] == [0] * 4 + [1] * 4


def test_an_adapter_that_has_learnt_is_part_of_the_reference(tmp_path):
    model = get_peft_model(policy(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    made = trainer(tmp_path, model, max_steps=3, learning_rate=1e-2)
    made.train()
    first, *_, last = (line["objective/kl_k3"] for line in lines(made))
    assert abs(first) < 1e-6 < last


def test_a_reward_model_that_gives_no_number_is_named(tmp_path):
    model = scorer()
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(DataError, match="LlamaForSequenceClassification gave a score that is NaN"):
        trainer(tmp_path, reward=model).train()


def test_a_reward_function_without_its_column_is_refused_before_the_first_rollout(tmp_path):
    with pytest.raises(DataError, match="exact_answer needs the column 'answer'; the prompts have"):
        trainer(tmp_path, reward=exact_answer)
