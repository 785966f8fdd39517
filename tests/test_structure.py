"""The shape of the package: imports point down, nothing is cyclic, public names are complete, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import growkit

ROOT = Path(growkit.__file__).parent

# From the ground up. A module may import from the floors below its own, and from its own package.
FLOORS = [
    ["errors"],
    ["config", "folders"],
    ["rng", "device", "environment", "callables", "formulas"],
    ["data", "models", "optim", "cost", "graph", "schedule"],
    ["losses", "convolutions", "twins"],
    ["metrics", "surgery"],
    [
        "growth.aftermath",
        "growth.base",
        "growth.history",
        "growth.limits",
        "growth.costs",
        "growth.names",
        "growth.decider",
        "growth.rewriting",
        "growth.event",
        "growth.newborn",
        "growth.when",
        "growth.guards",
        "growth.where",
        "growth.how_many",
        "growth.marginal_gain",
        "growth.pace",
        "growth.statistics",
        "growth.initializers",
        "growth.kinds",
        "growth.policy",
        "growth.plan",
        "evaluation",
        "ladder",
        "train",
    ],
    ["growth.candidates", "growth.depths", "growth.operation"],
    ["growth.deepening", "growth.orders", "growth.promise", "growth.retracing"],
    ["growth.ground"],
    ["growth.controller", "growth.prospector"],
    ["report"],
    ["checkpoint", "length"],
    ["assembly", "books"],
    ["trial"],
    ["pipeline", "dry_run", "inspection"],
    ["api", "doctor", "starting"],
    ["bench", "testing.policies", "testing.cases"],
    ["compare", "testing.forms"],
    ["cli", "testing"],
    ["__main__"],
]


def modules() -> dict[str, Path]:
    """Dotted name (without `growkit.`) -> file, packages by their own name."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(path: Path) -> set[str]:
    """The growkit modules a file imports when it is imported itself (TYPE_CHECKING blocks left out)."""
    tree = ast.parse(path.read_text())
    unreal = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    found = set()
    for node in ast.walk(tree):
        if node in unreal:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "growkit":
            names = {f"{node.module}.{alias.name}" for alias in node.names} & {f"growkit.{name}" for name in modules()}
            found |= names or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "growkit"}
    return {name.removeprefix("growkit").removeprefix(".") for name in found}


def floor_of(name: str) -> int | None:
    fitting = [
        (len(entry), level)
        for level, floor in enumerate(FLOORS)
        for entry in floor
        if name == entry or name.startswith(entry + ".")
    ]
    return max(fitting)[1] if fitting else None


def same_unit(a: str, b: str) -> bool:
    """Whether two modules belong to one entry of the floors or to one package."""
    return a.split(".")[0] == b.split(".")[0]


def test_every_module_stands_on_a_floor():
    homeless = [name for name in modules() if name not in ("", "growth") and floor_of(name) is None]
    assert homeless == []


def test_imports_point_down():
    upward = []
    for name, path in modules().items():
        if name in ("", "growth"):
            continue
        for other in imports_of(path) - {""}:
            here, there = floor_of(name), floor_of(other)
            assert here is not None and there is not None, (name, other)
            if there > here or (there == here and not same_unit(name, other)):
                upward.append(f"{name} imports {other}")
    assert upward == []


def test_no_import_cycles():
    graph = {name: imports_of(path) & set(modules()) for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph[name]:
                # a package's __init__ re-exports its members; that is not a cycle unless a member imports it back
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_public_names_are_sorted_complete_and_importable():
    assert growkit.__all__ == sorted(growkit.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in growkit.__all__:
        assert getattr(growkit, name) is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="growkit.*no attribute 'grwo'"):
        growkit.grwo  # noqa: B018


def test_every_module_lists_its_names():
    for name, path in modules().items():
        listed = [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        ]
        if name not in ("growth",):
            assert listed, f"{name} has no __all__"


@pytest.mark.parametrize(
    "statement", ["import growkit", "import growkit.config", "import growkit.cli", "import growkit.doctor"]
)
def test_importing_is_cheap(statement: str):
    heavy = ("torch", "numpy", "sklearn", "optuna", "matplotlib", "tensorboard")
    code = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == "[]"


def test_no_module_of_the_core_imports_heavy_packages_at_the_top():
    heavy = {"torchvision", "optuna", "matplotlib", "tensorboard", "sklearn", "jinja2"}
    found = []
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            roots = (
                {alias.name.split(".")[0] for alias in getattr(node, "names", [])}
                if isinstance(node, ast.Import)
                else set()
            )
            if isinstance(node, ast.ImportFrom) and node.module:
                roots = {node.module.split(".")[0]} | ({"tensorboard"} if "tensorboard" in node.module else set())
            found += [f"{name}: {root}" for root in roots & heavy if not node.__dict__.get("level")]
    assert found == []
