"""What watches a run leaves out the leap and nothing else, goes on where it stopped, and ends in time."""

import json
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState

from tuner.train import callbacks
from tuner.train.callbacks import SpikeGuard, StopOnRequest

seeded = settings(derandomize=True, database=None, deadline=None, max_examples=100)
norms = st.floats(0, 1e30, allow_nan=False)


def steady(count, seed=0):
    return np.abs(np.random.default_rng(seed).normal(1.0, 0.1, count)).tolist()


# ---- leaps ----


def test_the_leap_is_left_out_and_nothing_else():
    guard = SpikeGuard()
    before = steady(400)
    threshold = 1 + 6 * 0.1
    found = [guard.is_spike(norm) for norm in [*before, 5.0, *steady(300, 1), 1.2, threshold + 0.3, 0.0]]
    assert [number for number, leapt in enumerate(found) if leapt] == [400, 400 + 302]
    assert guard.skipped == 2


def test_nothing_leaps_before_the_window_is_full():
    guard = SpikeGuard(window=128)
    assert not any(guard.is_spike(norm) for norm in [*steady(100), 1e9, *steady(27)]) and guard.skipped == 0
    assert len(guard.norms) == 128 and not guard.is_spike(4e8), "the leap that went in made the deviation wide"


@seeded
@given(st.lists(norms, min_size=1, max_size=40), st.integers(1, 8), st.floats(0.5, 10))
def test_the_rule_is_the_one_of_the_formula(found, window, sigma):
    guard, kept, left_out = SpikeGuard(window, sigma), [], 0
    for norm in found:
        last = np.array(kept[-window:], dtype=np.longdouble)
        bound = last.mean() + sigma * last.std() if len(kept) >= window else math.inf
        leapt = guard.is_spike(norm)
        if not math.isclose(norm, bound, rel_tol=1e-9):
            assert leapt == (norm > bound)
        left_out += leapt
        kept.append(norm)
        assert list(guard.norms) == kept[-window:] and guard.skipped == left_out


@seeded
@given(st.lists(norms, max_size=40), st.lists(norms, max_size=20), st.integers(1, 8))
def test_a_guard_comes_back_from_json_as_it_was(before, after, window):
    guard = SpikeGuard(window, 2.0)
    for norm in before:
        guard.is_spike(norm)
    other = SpikeGuard(window, 2.0)
    other.is_spike(3.0)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state() and other.norms.maxlen == window
    assert [guard.is_spike(norm) for norm in after] == [other.is_spike(norm) for norm in after]
    assert other.state() == guard.state()


def test_a_state_is_no_view():
    """What a checkpoint holds does not change with the steps after it."""
    guard = SpikeGuard(2)
    guard.is_spike(1.0)
    state = guard.state()
    guard.is_spike(2.0)
    assert state == {"norms": [1.0], "skipped": 0}


def test_a_lasting_rise_is_learnt_from_in_the_end():
    """Weights that stand still have the norms they have: a guard that skips every one never lets them move again."""
    guard = SpikeGuard()
    for norm in steady(400):
        guard.is_spike(norm)
    assert not all(guard.is_spike(4 * norm) for norm in steady(1000, 1))


# ---- the clock ----


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(callbacks.time, "monotonic", clock)
    return clock


def after_step(limit, save_strategy="steps"):
    control = TrainerControl()
    limit.on_step_end(SimpleNamespace(save_strategy=save_strategy), TrainerState(), control)
    return control.should_training_stop, control.should_save


def begun(minutes):
    limit = StopOnRequest(minutes)
    limit.on_step_begin(SimpleNamespace(), TrainerState(), TrainerControl())
    return limit


def test_it_ends_at_the_minute_with_a_checkpoint(clock):
    limit = begun(2)
    for seconds, ends in ((0, False), (119.9, False), (120, True), (500, True)):
        clock.now = 1000 + seconds
        assert after_step(limit) == (ends, ends) and limit.out_of_time == ends


def test_an_earlier_part_of_the_run_does_not_count(clock):
    limit = begun(1)
    clock.now += 3600
    assert after_step(begun(1)) == (False, False)
    assert after_step(limit) == (True, True)


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_no_checkpoint_where_none_is_wanted(clock, strategy):
    limit = begun(1)
    clock.now += 61
    assert after_step(limit, strategy) == (True, strategy != "no")


def test_without_minutes_it_never_ends(clock):
    limit = begun(None)
    clock.now += 1e9
    assert after_step(limit) == (False, False)


def test_processes_stop_at_the_same_step(clock):
    """What any of them wants counts, not what this one wants."""
    limit = begun(1)
    limit.agreed = torch.tensor([signal.SIGTERM, 0])
    assert after_step(limit) == (True, True) and limit.received == signal.SIGTERM
    limit = begun(1)
    clock.now += 60
    assert limit.wanted().tolist() == [0, 1]
    limit.agreed = torch.tensor([0, 0])
    assert after_step(limit) == (False, False)


def test_what_comes_before_the_first_step_does_not_count(clock):
    limit = StopOnRequest(1)
    clock.now += 61  # an evaluation, rows that a resumed run skips
    limit.on_step_begin(SimpleNamespace(), TrainerState(), TrainerControl())
    clock.now += 1
    assert after_step(limit) == (False, False)
