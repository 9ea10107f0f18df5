"""The rules of docs/decisions/0001-layers.md, checked on the syntax tree of every file: who imports whom, where torch
may be, and how large things may grow. The second half feeds the checkers bad code, so that they cannot rot."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lexitome"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"volume", "text", "palette"}),
    frozenset({"concepts", "prompts"}),
    frozenset({"segmentation"}),
    frozenset({"io", "runtime"}),
    frozenset({"models", "losses", "data"}),
    frozenset({"inference"}),
    frozenset({"training", "evaluation"}),
    frozenset({"recipes"}),
    frozenset({"api"}),
    frozenset({"cli"}),
)
"""Bottom to top. A unit imports units of lower rows only; those of one row do not know each other."""

RANK = {unit: rank for rank, row in enumerate(LAYERS) for unit in row}
MAY_USE_IO = frozenset({"data", "evaluation", "recipes", "api", "cli"})
TORCH_UNITS = frozenset({"models", "losses", "training", "recipes"})
EXTRAS = ("torch", "train", "eval", "nnunet")
TORCH_DECLARATION = "needs torch"
"""A module of `DECLARING_UNITS` may import torch if its docstring says so in these words."""
DECLARING_UNITS = frozenset({"data", "evaluation", "inference"})

LONGEST_FUNCTION = 60
LONGEST_FILE = 600
MOST_PARAMETERS = 8
VAGUE_NAMES = frozenset({"utils", "util", "helpers", "common", "misc"})

Modules = Mapping[str, ast.Module]


def parse(folder: Path, package: str = PACKAGE) -> dict[str, ast.Module]:
    """Dotted module name to syntax tree, for every Python file below `folder`."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        dotted = ".".join((package, *parts)).removesuffix(".__init__")
        modules[dotted] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def unit_of(module: str) -> str:
    """ "lexitome.io.dicom" -> "io"; the root itself -> ""."""
    return module.split(".")[1] if "." in module else ""


def imported_by(module: str, nodes: Iterator[ast.AST], modules: Modules) -> Iterator[str]:
    """Dotted names that the import statements among `nodes` bring in; `from package import module` counts as both."""
    is_package = any(other.startswith(f"{module}.") for other in modules) or module == PACKAGE
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")
            base = here[: len(here) - node.level + is_package] if node.level else []
            source = ".".join((*base, *(node.module.split(".") if node.module else ())))
            submodules = [f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in modules]
            yield from submodules
            if source != PACKAGE or len(submodules) < len(node.names):
                yield source


def run_on_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not function bodies, not `if TYPE_CHECKING`."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack += node.orelse
            continue
        stack += ast.iter_child_nodes(node)


def layer_violations(modules: Modules) -> list[str]:
    """Upward and sideways imports, `io` where files have no business, units without a place."""
    found = []
    for module, tree in modules.items():
        unit = unit_of(module)
        if unit == "" or unit == "__main__":
            continue
        if unit not in RANK:
            found.append(f"{module}: {unit!r} has no layer; place it in LAYERS or move it into a unit that has one")
            continue
        for name in sorted(set(imported_by(module, ast.walk(tree), modules))):
            other = unit_of(name) if name.split(".")[0] == PACKAGE else unit
            if other in ("", unit) or other not in RANK:
                if name == PACKAGE and unit != "cli":
                    found.append(f"{module} imports the root, which sits above all but the command line")
            elif RANK[other] >= RANK[unit]:
                found.append(f"{module} imports {name}: {'sideways' if RANK[other] == RANK[unit] else 'upward'}")
            elif other == "io" and unit not in MAY_USE_IO:
                found.append(f"{module} imports {name}: {unit} never touches image files")
    return found


def reached_on_import(start: str, modules: Modules) -> Iterator[tuple[str, str]]:
    """(module, foreign import) for all that importing `start` runs, parents' `__init__` included."""
    seen: set[str] = set()
    stack = [start]
    while stack:
        module = stack.pop()
        if module in seen or module not in modules:
            continue
        seen.add(module)
        stack.append(module.rpartition(".")[0])
        for name in imported_by(module, run_on_import(modules[module]), modules):
            if name in modules:
                stack.append(name)
            elif name.split(".")[0] != PACKAGE:
                yield module, name


def may_use_torch(module: str, tree: ast.Module) -> bool:
    declared = TORCH_DECLARATION in (ast.get_docstring(tree) or "").lower()
    return unit_of(module) in TORCH_UNITS or (unit_of(module) in DECLARING_UNITS and declared)


def torch_violations(modules: Modules) -> list[str]:
    """Modules that must run on the base install but reach torch when imported; packages count as such modules."""
    found = []
    for module, tree in modules.items():
        is_package = any(other.startswith(f"{module}.") for other in modules)
        if may_use_torch(module, tree) and not is_package:
            continue
        culprits = {
            where
            for where, name in reached_on_import(module, modules)
            if name.split(".")[0] in ("torch", "torchvision")
        }
        found += [f"importing {module} imports torch in {where}" for where in sorted(culprits)]
    return found


def distribution_names(requirements: Iterable[str]) -> set[str]:
    """ "SimpleITK>=2.3" -> "simpleitk"."""
    return {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def undeclared(modules: Modules, base: set[str], extras: set[str]) -> list[str]:
    """Imports of packages that an installation would not bring: what a developer's machine has by accident."""
    homes = {name: {d.lower().replace("_", "-") for d in found} for name, found in packages_distributions().items()}
    found = []
    for module, tree in modules.items():
        at_once = {name.split(".")[0] for name in imported_by(module, run_on_import(tree), modules)}
        for name in sorted({name.split(".")[0] for name in imported_by(module, ast.walk(tree), modules)}):
            if name in sys.stdlib_module_names or name == PACKAGE:
                continue
            allowed = base if name in at_once and not may_use_torch(module, tree) else base | extras
            if not homes.get(name, {name}) & allowed:
                found.append(f"{module} imports {name}, which pyproject.toml does not declare for it")
    return found


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A function whose signature *is* the command line: typer makes one option of each parameter."""
    return any(isinstance(d, ast.Call) and ast.unparse(d.func).endswith(".command") for d in node.decorator_list)


def size_violations(name: str, source: str) -> list[str]:
    lines = source.count("\n")
    found = [f"{name}: {lines} lines, at most {LONGEST_FILE}"] if lines > LONGEST_FILE else []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > LONGEST_FUNCTION:
            found.append(f"{name}:{node.lineno} {node.name}: {length} lines, at most {LONGEST_FUNCTION}")
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > MOST_PARAMETERS and not is_command(node):
            found.append(f"{name}:{node.lineno} {node.name}: {count} parameters, at most {MOST_PARAMETERS}")
    return found


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    return parse(ROOT / "src" / PACKAGE)


def test_layers(modules: Modules) -> None:
    assert not layer_violations(modules)


def test_torch_stays_optional(modules: Modules) -> None:
    assert not torch_violations(modules)


def test_dependencies_are_declared(modules: Modules) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    base = distribution_names(project["dependencies"])
    assert not undeclared(modules, base, distribution_names([each for extra in EXTRAS for each in optional[extra]]))


def test_root_imports_nothing(modules: Modules) -> None:
    foreign = {n for n in imported_by(PACKAGE, run_on_import(modules[PACKAGE]), modules)}
    assert foreign <= {"__future__", "typing", "importlib"}


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_sizes(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        found += size_violations(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    assert not found


def test_no_dumping_grounds(modules: Modules) -> None:
    assert not [module for module in modules if module.split(".")[-1] in VAGUE_NAMES]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_import_is_quick_and_does_nothing() -> None:
    """Best of three, since the bound is about the work done and not about what else the machine does."""
    code = (
        "import time, sys; start = time.perf_counter(); import lexitome; "
        "print(time.perf_counter() - start, *sorted({'torch', 'numpy', 'scipy', 'onnxruntime'} & set(sys.modules)))"
    )
    seconds, *heavy = min((run_python(code).split() for _ in range(3)), key=lambda words: float(words[0]))
    assert not heavy
    assert float(seconds) < 0.5


@pytest.mark.parametrize("name", ["lexitome.api", "lexitome.cli.app", "lexitome.inference.segmenter", "lexitome.io"])
def test_base_install_imports_without_torch(name: str) -> None:
    """For real, with torch made unimportable: a library that drags torch in counts too."""
    assert run_python(f"import sys; sys.modules['torch'] = None; import {name}; print('fine')") == "fine"


def bad(**sources: str) -> dict[str, ast.Module]:
    """A small tree around `lexitome` where double underscores in the keyword stand for dots."""
    tree = {"lexitome": "", "lexitome.io": "", "lexitome.models": "", "lexitome.volume": "", "lexitome.inference": ""}
    tree |= {f"lexitome.{name.replace('__', '.')}": source for name, source in sources.items()}
    return {name: ast.parse(source) for name, source in tree.items()}


@pytest.mark.parametrize(
    ("modules_", "word"),
    [
        (bad(volume="from lexitome.io import read"), "upward"),
        (bad(text="import lexitome.volume"), "sideways"),
        (bad(losses__mask="from ..data import folder", data__folder=""), "sideways"),
        (bad(volume="def f():\n    from lexitome import io"), "upward"),
        (bad(models__net="from lexitome.io import read"), "never touches image files"),
        (bad(inference__segmenter="import lexitome.io"), "never touches image files"),
        (bad(training__loop="from lexitome import io"), "never touches image files"),
        (bad(volume="import lexitome"), "root"),
        (bad(utils="x = 1"), "no layer"),
    ],
)
def test_layer_checker_catches(modules_: Modules, word: str) -> None:
    assert any(word in violation for violation in layer_violations(modules_))


@pytest.mark.parametrize(
    "modules_",
    [
        bad(volume="import torch"),
        bad(volume="try:\n    from torch import nn\nexcept ImportError:\n    pass"),
        bad(models="from lexitome.models.net import Net", models__net="import torch", models__catalog=""),
        bad(inference__segmenter="from lexitome.models import net", models__net="from torch import nn"),
        bad(data__batches='"""Batches."""\nimport torch'),
        bad(inference__sam3='"""Large."""\nimport torch'),
        bad(inference__segmenter="import lexitome.inference.sam3", inference__sam3='"""Needs torch."""\nimport torch'),
        {"lexitome": ast.parse("from lexitome.net import x"), "lexitome.net": ast.parse("import torchvision")},
    ],
)
def test_torch_checker_catches(modules_: Modules) -> None:
    assert torch_violations(modules_)


@pytest.mark.parametrize(
    "modules_",
    [
        bad(models__net="import torch", models__catalog=""),
        bad(data__batches='"""Batches. Needs torch."""\nimport torch'),
        bad(inference__sam3='"""Large. Needs torch."""\nimport torch'),
        bad(inference__segmenter="def f():\n    import torch"),
        bad(volume="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_torch_checker_allows(modules_: Modules) -> None:
    assert not torch_violations(modules_)


def test_dependency_checker_catches() -> None:
    late = "def f():\n    import "
    assert undeclared(bad(volume="import hypothesis"), {"numpy"}, {"torch"})
    assert undeclared(bad(volume=f"{late}hypothesis"), {"numpy"}, {"torch"})
    assert undeclared(bad(volume="import torch"), {"numpy"}, {"torch"})
    assert not undeclared(bad(volume=f"{late}torch", models__net="import torch"), {"numpy"}, {"torch"})
    assert not undeclared(bad(volume="import os, numpy.linalg\nfrom PIL import Image"), {"numpy", "pillow"}, set())


def test_size_checker_catches() -> None:
    long_function = "def f():\n" + "    x = 1\n" * 61
    many = f"def f({', '.join(f'a{i}' for i in range(9))}): ..."
    assert size_violations("a", long_function)
    assert size_violations("a", "x = 1\n" * 601)
    assert size_violations("a", many)
    assert not size_violations("a", f"@app.command()\n{many}")
    assert not size_violations("a", "def f(self, a, b, c, d, e, f, g, h): ...")
