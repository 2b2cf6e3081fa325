"""A checkpoint is whole or it is not one."""

import json
from pathlib import Path

import pytest

from tests.processes import run_python
from tuner.train.checkpoint import MANIFEST, STAGING, commit, defect, last_checkpoint, list_checkpoints


def make(folder: Path, step: int) -> Path:
    staged = folder / STAGING / f"checkpoint-{step}"
    (staged / "nested").mkdir(parents=True)
    (staged / "weights.bin").write_bytes(bytes(range(256)) * 1000)
    (staged / "nested" / "state.json").write_text(json.dumps({"step": step}))
    final = folder / f"checkpoint-{step}"
    commit(staged, final)
    return final


def test_a_committed_checkpoint_is_whole(tmp_path):
    final = make(tmp_path, 3)
    assert defect(final) is None
    assert set(json.loads((final / MANIFEST).read_text())["files"]) == {"weights.bin", "nested/state.json"}
    assert last_checkpoint(tmp_path) == final


def damage_bit(final: Path) -> None:
    data = bytearray((final / "weights.bin").read_bytes())
    data[1234] ^= 1
    (final / "weights.bin").write_bytes(bytes(data))


DAMAGES = {
    "a flipped bit": (damage_bit, "does not match its hash"),
    "a truncated file": (lambda f: (f / "weights.bin").write_bytes(b"short"), "5 bytes instead of 256000"),
    "a missing file": (lambda f: (f / "nested" / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), f"no {MANIFEST}"),
    "half a manifest": (lambda f: (f / MANIFEST).write_text('{"files": {"wei'), "cannot be read"),
    "a manifest of another kind": (lambda f: (f / MANIFEST).write_text("[]"), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_its_defect(tmp_path, name):
    damage, message = DAMAGES[name]
    before, newest = make(tmp_path, 4), make(tmp_path, 8)
    damage(newest)
    assert message in defect(newest)
    with pytest.warns(UserWarning, match="checkpoint-8 is not a whole checkpoint"):
        assert last_checkpoint(tmp_path) == before


def test_checkpoints_are_ordered_by_step_and_strangers_ignored(tmp_path):
    for step in (9, 100, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-20", "checkpoint-9"]


def test_no_folder_has_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "absent") is None


@pytest.mark.slow
def test_a_kill_before_the_rename_leaves_nothing_under_the_name(tmp_path):
    code = (
        "import os, signal, sys\n"
        "sys.addaudithook(lambda e, a: os.kill(os.getpid(), signal.SIGKILL) if e == 'os.rename' else None)\n"
        "from pathlib import Path\n"
        "from tests.train.test_checkpoint import make\n"
        f"make(Path({str(tmp_path)!r}), 5)\n"
    )
    done = run_python("-c", code)
    assert done.returncode == -9
    assert list_checkpoints(tmp_path) == []
    assert last_checkpoint(tmp_path) is None
