"""Wheels for a GPU machine that has torch and no network: what `make gpu-check` needs and such an image often lacks.

They are for Python 3.12 on x86-64 Linux, in the versions of `constraints.txt`, without what they depend on: the names
below are the closure, less what comes with torch or is too large to send. What must be there already is printed; with
`--present`, a list of the machine's packages (`pip list --format=freeze`, or bare names), a lack or a version that does
not fit is an error.

    make gpu-wheels                                  # into .wheels/
    make gpu-wheels ARGS="--present machine.txt"
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    *("transformers", "tokenizers", "safetensors", "huggingface_hub", "hf-xet", "httpx2", "httpcore2", "truststore"),
    *("datasets", "dill", "multiprocess", "xxhash", "fsspec", "evaluate", "accelerate", "peft", "click"),
    *("chitchat-dataset", "trl", "liger-kernel"),
]
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
TARGET = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "extra": ""}
TARGET |= {"platform_machine": "x86_64", "platform_system": "Linux", "implementation_name": "cpython"}
LIMIT = 60 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / ".wheels", help="folder (default: .wheels)")
    parser.add_argument("--present", type=Path, help="file with the packages that the machine has, one a line")
    args = parser.parse_args()
    download(args.output)
    wheels = sorted(args.output.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:8.2f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{total / 2**20:8.2f} MiB  in {len(wheels)} wheels")
    if total > LIMIT:
        sys.exit(f"That is more than {LIMIT // 2**20} MiB: leave something out.")
    present = None if args.present is None else read_present(args.present.read_text(encoding="utf-8"))
    needed, faults = lacks(metadata(wheels), present)
    print(f"\nThe machine must have: {', '.join(needed)}")
    if faults:
        sys.exit("\n".join(faults))
    if present is not None:
        print("It has all of them.")


def download(folder: Path) -> None:
    """One wheel of each package, pinned where `constraints.txt` pins it; an earlier version is removed."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = [f"{name}=={pins[n]}" if (n := canonicalize_name(name)) in pins else name for name in PACKAGES]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
    subprocess.run([*command, "-d", str(folder), *wanted], check=True)


def read_present(text: str) -> dict[str, str | None]:
    """Name to version, or to None where the list names no version."""
    lines = (line.strip().partition("==") for line in text.splitlines() if line.strip())
    return {canonicalize_name(name): version or None for name, _, version in lines}


def metadata(wheels: list[Path]) -> dict[str, tuple[str, list[str]]]:
    """Of each wheel, and of tuner itself: name to version and requirements."""
    found = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            fields = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
        found[canonicalize_name(fields["Name"])] = (fields["Version"], fields.get_all("Requires-Dist") or [])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {**found, "tuner": ("0", project["dependencies"])}


def lacks(
    carried: dict[str, tuple[str, list[str]]], present: dict[str, str | None] | None
) -> tuple[list[str], list[str]]:
    """What the wheels and tuner need beside each other, and what of it is not there or does not fit.

    Args:
        carried: from `metadata`.
        present: from `read_present`, or None where nobody knows.

    Returns:
        The requirements that the machine must meet, and a message for each that is not met.
    """
    needed, faults = set(), []
    for owner, requirement in _requirements(carried):
        name = canonicalize_name(requirement.name)
        if name not in carried:
            needed.add(f"{name}{requirement.specifier}")
        if name in carried:
            version: str | None = carried[name][0]
        elif present is None:
            continue
        elif name in present:
            version = present[name]
        else:
            faults.append(f"{owner} needs {requirement}, which is neither among the wheels nor there.")
            continue
        if version is not None and not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            faults.append(f"{owner} needs {requirement}, and {version} is there.")
    return sorted(needed), faults


def _requirements(carried: dict[str, tuple[str, list[str]]]) -> Iterator[tuple[str, Requirement]]:
    """Owner and requirement, of those that hold for the target."""
    for owner, (_, lines) in carried.items():
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(TARGET):
                yield owner, requirement


if __name__ == "__main__":
    main()
