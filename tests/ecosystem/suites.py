"""Other libraries' own tests: fetched from their source packages, run in a process of their own, counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.processes import ROOT

UPSTREAM = json.loads((Path(__file__).parent / "upstream.json").read_text(encoding="utf-8"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tuner" / "suites"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
NEEDED = {"transformers": ["parameterized==0.9.0"], "peft": []}  # beyond this project's environment
# What the suites import, and no source package has; of diffusers one class, which no model here is.
STAND_INS = {
    "transformers": {
        "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
        "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    },
    "peft": {"diffusers.py": "class StableDiffusionPipeline:\n    pass\n"},
}


def check_name(library: str) -> str:
    """What the page calls a library's own tests."""
    return f"{library} {'.'.join(version(library).split('.')[:2])}, its own tests"


def fetch(library: str) -> Path:
    """A folder with the package `<library>_tests`, the tests of the installed version, and what they need."""
    folder = CACHE / f"{library}-{version(library)}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        source = ["--no-deps", "--no-binary", library, f"{library}=={version(library)}", "-d", temporary]
        subprocess.run([*PIP, "download", *source], check=True)
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            archive.extractall(temporary, filter="data")
        next(Path(temporary).glob("*/tests")).rename(new / f"{library}_tests")
        (new / f"{library}_tests" / "__init__.py").touch()
        for name, text in STAND_INS[library].items():
            if not (new / name).exists():
                (new / name).parent.mkdir(exist_ok=True)
                (new / name).write_text(text)
        if NEEDED[library]:
            subprocess.run([*PIP, "install", "--no-deps", "--target", new, *NEEDED[library]], check=True)
        new.rename(folder)
    return folder


@dataclass
class Outcomes:
    """What each test came to: its name, and the message where it failed or was skipped."""

    passed: set[str]
    failed: dict[str, str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        return f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"


def compare(check: str, ours: Outcomes, controls: dict[str, Outcomes], record: Callable[[str, object], None]) -> None:
    """Records the counts beside each other. `upstream.json` has a reason for each test of ours that fails.

    Raises:
        AssertionError: a test fails on ours alone, or fails without a reason, or is said to fail and does not.
    """
    allowed = {name for control in controls.values() for name in control.failed}
    alone = {name: why for name, why in ours.failed.items() if name not in allowed}
    assert not alone, f"{len(alone)} fail on ours alone, as {dict(list(alone.items())[:5])}"
    said = {name.removeprefix(f"{check}: ") for name in UPSTREAM if name.startswith(f"{check}: ")}
    assert {name.partition("[")[0] for name in ours.failed} == said
    record("counts", "; ".join([str(ours), *(f"{family}: {found}" for family, found in controls.items())]))
    if ours.failed:
        record("state", "upstream")


def run(tests: Path, library: str, folder: Path, *options: str, only: Iterable[str] = (), **settings: str) -> Outcomes:
    """Runs a file of tests in the folder, without the Hub; our model is registered before.

    Args:
        options: pytest's.
        only: names of tests, as in `Outcomes`; all by default.
        settings: of the environment.
    """
    report = folder / "outcomes.xml"
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join([str(ROOT), str(fetch(library))])
    environment = {**os.environ, **offline, **settings, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    (folder / "pytest.ini").write_text("[pytest]\ntimeout = 300\n")
    plain = ["-c", folder / "pytest.ini", "-p", "no:cacheprovider", "-p", "tuner.model", "-q", "--tb=short"]
    chosen = [f"{tests}::{name.replace('.', '::', 1)}" for name in only]
    command = [sys.executable, "-m", "pytest", *plain, f"--junitxml={report}", *options, *(chosen or [tests])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    return read(report)


def read(report: Path) -> Outcomes:
    """Outcomes from pytest's JUnit file, where a test's subtests have its name: one that failed counts for all."""
    found = Outcomes(set(), {}, {})
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:
            found.failed[name] = bad[0].get("message", "")
        elif skipped is not None:
            found.skipped[name] = skipped.get("message", "")
        else:
            found.passed.add(name)
    found.passed -= found.failed.keys()
    found.skipped = {name: why for name, why in found.skipped.items() if name not in found.passed | found.failed.keys()}
    return found
