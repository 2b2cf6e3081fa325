"""The report of a finished run, whatever of it fails."""

import json
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from tuner.evaluation import report
from tuner.evaluation.samples import SampleCallback


def fails(*_, **__):
    raise ValueError("bad day")


def test_metrics_are_written_first_and_every_failure_is_a_warning(tmp_path, monkeypatch):
    history = [{"step": 0, "eval_loss": 2.0}, {"step": 1, "loss": 1.5}, {"step": 1, "eval_loss": 1.0}]
    samples = SampleCallback(None, SimpleNamespace(tokenizer=None))
    samples.finish = fails
    monkeypatch.setattr(report, "plot_losses", fails)
    trainer = SimpleNamespace(
        state=SimpleNamespace(log_history=history, global_step=1), saved_step=lambda: 1, mean_loss=lambda: 1.5,
        objective=SimpleNamespace(
            name="sft", model="decoder", tokenizer=None, loss_unit="nats", compare=fails, predict=fails
        ),
        examples=SimpleNamespace(reports=None), folder=tmp_path, model=None,
        run=SimpleNamespace(args=None, labels=None),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model), is_world_process_zero=lambda: True,
        callback_handler=SimpleNamespace(callbacks=[samples]),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="could not be made: ValueError: bad day") as said:
        metrics = report.write_report(trainer, SimpleNamespace(kind="messages"))
    assert [str(w.message).partition(" could")[0] for w in said] == [
        *("classes.md", "The comparison", "loss.png", "samples.md")
    ]
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (metrics["eval"], metrics["untrained"]) == ({"loss": 1.0}, {"loss": 2.0})


def test_samples_that_fail_end_no_training():
    samples = SampleCallback(None, SimpleNamespace(tokenizer=None))
    model = SimpleNamespace(config=None, can_generate=fails)
    with pytest.warns(UserWarning, match="The samples of step 3 could not be made: ValueError: bad day"):
        samples.on_evaluate(None, TrainerState(global_step=3), None, model=model)
