"""Which recipe a YAML file of flags is for, and that recipe's arguments."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import tuner
from tuner.errors import ArgumentError, nearest, unreadable

# Where recipes lie: here, or in the checkout that this package is installed from.
ROOTS = (Path(), Path(tuner.__file__).parents[1])


def find_recipe(config: Path) -> Path:
    """The recipe of a YAML file, by its first line `# accelerate launch recipes/<recipe>.py ...`, or by its folder
    `configs/<recipe>/`; an ArgumentError where it cannot be read, or names no recipe that there is.

    Only a file of a folder `recipes` here or beside the package: it will be imported, and a comment in a file from
    elsewhere is not to say what runs.
    """
    try:
        with config.open(encoding="utf-8", errors="replace") as lines:
            first = next(lines, "")
    except OSError as error:
        raise ArgumentError(f"{config}: {unreadable(config, error)}") from error
    stated = re.match(r"#.*\brecipes/(\w+)\.py\b", first)
    by_folder = config.absolute().parent
    name = stated[1] if stated else by_folder.name if by_folder.parent.name == "configs" else None
    known = {path.stem: path for root in reversed(ROOTS) for path in sorted((root / "recipes").glob("*.py"))}
    if name not in known:
        found = f"there is no recipe {name!r}.{nearest(name, known)}" if name else "its first line names no recipe."
        raise ArgumentError(
            f"{config}, line 1: {found} Expected '# accelerate launch recipes/<recipe>.py --config ...' with one of "
            f"{', '.join(known)}."
        )
    return known[name]


def arguments_of(recipe: Path) -> type[Any]:
    """The dataclass of a recipe's arguments, which the recipe is imported for; an `ArgumentError` if it has not one."""
    name = f"tuner_recipe_{recipe.stem}"
    spec = importlib.util.spec_from_file_location(name, recipe)
    assert spec is not None and spec.loader is not None, "a .py file has both"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    own = (v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)
    kinds = [kind for kind in own if dataclasses.is_dataclass(kind)]
    if len(kinds) != 1:
        raise ArgumentError(f"{recipe} defines {len(kinds)} dataclasses of arguments; a recipe has one.")
    return kinds[0]
