"""The law of the house: imports point down, files stay short, nothing heavy at the door."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.recipes import ROOT, environment

# Each floor may import from those below it and from itself.
FLOORS = [
    ["tuner.errors"],
    ["tuner.config", "tuner.hardware", "tuner.families"],
    ["tuner.text"],
    ["tuner.data"],
    ["tuner.corpus", *(f"tuner.evaluation.{part}" for part in ("baselines", "calibration", "metrics", "statistics"))],
    ["tuner.model"],
    ["tuner.ops", "tuner.optim"],
    ["tuner.loading"],
    ["tuner.objectives"],
    ["tuner.estimate", "tuner.feedback", "tuner.hub"],
    ["tuner.train"],
    ["tuner.evaluation"],
    ["tuner.rl"],
    ["tuner.commands"],
    ["tuner.cli"],
]
SOURCES = sorted((ROOT / "tuner").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
# Modules of transformers, torch and the standard library that the custom code of a model may import on the Hub.
TRAVELS = [
    *("components", "configuration", "sharding", "recompute", "norm", "positions", "linear", "attention", "experts"),
    *("feedforward", "block", "stack", "decoder", "encoder_stack", "encoder", "seq2seq", "registration"),
]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    found = [i for i, floor in enumerate(FLOORS) if any(module == m or module.startswith(m + ".") for m in floor)]
    assert found, f"{module} is on no floor: put it on one in this test and in docs/architecture.md"
    return found[0]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules of `tuner` that a file imports, anywhere in it."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            found |= (
                {module} if module != "tuner" else {f"tuner.{a.name}" for a in node.names if a.name != "__version__"}
            )
    return {name for name in found if name.startswith("tuner.")}


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent != ROOT / "tuner" or p.name != "__init__.py"], ids=module_of
)
def test_imports_point_down(path):
    here = floor_of(module_of(path))
    for name in imports_of(path):
        assert floor_of(name) <= here, f"{module_of(path)} imports {name} from a floor above"


def test_no_recipe_waits_for_the_library_evaluate():
    """It takes a second to import, and what trains needs it at its end if at all."""
    modules = "tuner.train.prepare, tuner.train.trainer, tuner.evaluation.report, tuner.objectives.seq2seq"
    code = f"import sys, {modules}; print('evaluate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_no_circles():
    graph = {module_of(p): imports_of(p) for p in SOURCES}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        for name in graph.get(module, ()):
            # `from tuner.model import X` in tuner.model's own files would be a circle through its __init__.
            visit(name, (*trail, module))

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_functions_are_short(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 75, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_short_and_import_no_recipe(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    assert "accelerate launch recipes/" in ast.get_docstring(ast.parse(text)), "the docstring shows the launch line"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
            assert not {n.split(".")[0] for n in names} & {r.stem for r in RECIPES} - {"evaluate"}


@pytest.mark.parametrize("name", TRAVELS)
def test_the_model_can_travel_alone(name):
    """What the decoder needs imports siblings relatively and nothing else of tuner."""
    for node in ast.walk(parsed(ROOT / "tuner" / "model" / f"{name}.py")):
        if isinstance(node, ast.ImportFrom):
            assert (
                node.level == 1 and node.module in TRAVELS
                if node.level
                else not (node.module or "").startswith("tuner")
            )


def test_one_file_knows_trl_s_experiments():
    """Their module goes away with a release: one place says what then takes its part."""
    knowing = set()
    for path in (*SOURCES, *RECIPES):
        for node in ast.walk(parsed(path)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            knowing |= {module_of(path) for name in names if name.startswith("trl.experimental")}
    assert knowing == {"tuner.rl.trl_ppo"}


def test_public_names_are_documented():
    for path in SOURCES:
        tree = parsed(path)
        assert ast.get_docstring(tree), f"{path} has no header"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module_of(path)}.{node.name} has no docstring"


COMMAND = "import runpy, sys; sys.argv = ['tuner', '--help']; runpy.run_module('tuner.cli', run_name='__main__')"


@pytest.mark.parametrize("code", ["import tuner", "import tuner.config.arguments, tuner.cli", COMMAND])
def test_the_door_is_light(code):
    check = f"import sys, atexit; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n{code}"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "False", done.stderr
