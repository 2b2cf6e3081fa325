"""`tuner doctor`: what is installed, beside what is wanted."""

import importlib.metadata
import platform
import tomllib
from pathlib import Path

import pytest

from tests.recipes import ROOT
from tuner.commands.doctor import MISSING, WRONG, versions

PROJECT = tomllib.loads((Path(ROOT) / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def installed(monkeypatch):
    """Pretends that packages have these versions."""
    real = importlib.metadata.version

    def pretend(**found):
        def version(name):
            if found.get(name, "") is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found.get(name) or real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        return {name: rest for name, *rest in versions()}

    return pretend


def test_python_is_what_the_project_says():
    assert versions()[0] == ("python", platform.python_version(), PROJECT["requires-python"], "")


def test_what_is_missing_or_of_another_version(installed):
    found = installed(trl=None, peft="9.9", rich="14.1+local")
    assert found["trl"][0] == "-" and found["trl"][2] == MISSING
    assert found["peft"][0] == "9.9" and found["peft"][2] == WRONG
    assert found["rich"][2] == ""


def test_of_an_extra_only_what_is_there_in_another_version(installed):
    found = installed(gradio="1.0", sacrebleu=None, gguf="0.18.0", onnx="0.1")
    assert found["gradio (extra ui)"][0] == "1.0" and found["gradio (extra ui)"][2] == WRONG
    assert found["onnx (extra export)"][2] == WRONG
    assert not {name for name in found if name.startswith(("sacrebleu", "gguf"))}
