"""The floors of docs/architecture.md, read from the imports that stand in the files; nothing is imported here.

Every import counts, wherever it stands: at the top, inside a function, or for the type checker only.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# folder -> (what it may import of ours, what it may import of others)
FLOORS: dict[str, tuple[set[str], set[str]]] = {
    "api": (
        {"allocator"},
        {
            "alembic",
            "altair",
            "dbos",
            "fastapi",
            "fsspec",
            "httpx2",
            "jinja2",
            "limits",
            "pandas",
            "prometheus_client",
            "psutil",
            "psycopg",
            "pydantic",
            "rich",
            "sqlalchemy",
            "starlette",
            "structlog",
            "typer",
            "uvicorn",
        },
    ),
    "allocator": (
        {"sensitivity", "solvers", "kernels"},
        {
            "accelerate",
            "gguf",
            "huggingface_hub",
            "numpy",
            "PIL",
            "psutil",
            "pydantic",
            "regex",
            "safetensors",
            "torch",
            "transformers",
        },
    ),
    "sensitivity": ({"kernels"}, {"numpy", "PIL", "safetensors", "torch", "transformers"}),
    "kernels": (set(), {"numpy", "torch", "triton"}),
    "solvers": (set(), {"cvxpy", "numpy", "pulp", "scipy"}),
}
SENSITIVITY_SEES = {
    "kernels.float64",
    "kernels.formats",
    "kernels.layout",
    "kernels.packing",
    "kernels.product",
    "kernels.reference",
    "kernels.rounding",
}
# Heavy or optional: each is imported in files of its own and never while a folder's face is imported.
LAUNCH_MODULES = "kernels.triton"
# Planning from a stored profile needs none of these, so these files must not reach them when they are imported.
HEAVY = {"accelerate", "gguf", "torch", "transformers", "triton"}
LIGHT = (
    "kernels.formats",
    "kernels.latency",
    "kernels.latency_fit",
    "sensitivity.units",
    "sensitivity.report",
    "allocator",
    "allocator.build",
    "allocator.budget",
    "allocator.errors",
    "allocator.plan",
    "allocator.targets",
    "solvers",
    "api.app",
    "api.cli",
    "api.client",
    "api.store",
)
LONGEST_FILE = 450


@dataclass(frozen=True)
class Import:
    """`target` is a file of ours (`solvers.hull`) or a top-level name of others (`numpy`)."""

    target: str
    ours: bool
    relative: bool
    when_imported: bool  # false inside a function and under `if TYPE_CHECKING`
    line: int


def files_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """`solvers/hull.py` is `solvers.hull`, `solvers/__init__.py` is `solvers`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for folder in FLOORS for path in files_of(folder)}
PACKAGES = {module.rpartition(".")[0] for module in MODULES} - {""}  # with or without an __init__.py


def imports_of(path: Path) -> list[Import]:
    found: list[Import] = []
    package = [*path.relative_to(ROOT).parts[:-1]]

    def visit(node: ast.AST, when_imported: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name
                ours = name.split(".")[0] == "bitplan"
                target = name.removeprefix("bitplan").lstrip(".") if ours else name.split(".")[0]
                found.append(Import(target, ours, False, when_imported, node.lineno))
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level == 0 and source.split(".")[0] != "bitplan":
                found.append(Import(source.split(".")[0], False, False, when_imported, node.lineno))
                return
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *source.removeprefix("bitplan" if node.level == 0 else "").strip(".").split(".")]).strip(".")
            for alias in node.names:
                file = f"{base}.{alias.name}".strip(".")
                found.append(
                    Import(file if file in MODULES.keys() | PACKAGES else base, True, node.level > 0, when_imported, node.lineno)
                )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for child in ast.iter_child_nodes(node):
                visit(child, False)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, False)
            for child in node.orelse:
                visit(child, when_imported)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, when_imported)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def where(module: str, found: Import) -> str:
    return f"{MODULES[module].relative_to(ROOT)}:{found.line} imports {found.target}"


def test_every_python_file_lies_on_a_floor() -> None:
    known = {*FLOORS, "tests", "benchmarks", "scripts", "docs"}
    folders = {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert folders - known - {"build"} == set()


@pytest.mark.parametrize("folder", FLOORS)
def test_no_arrow_runs_up(folder: str) -> None:
    allowed, _ = FLOORS[folder]
    wrong = [
        where(module, found)
        for module, imports in IMPORTS.items()
        if module.split(".")[0] == folder
        for found in imports
        if found.ours and found.target.split(".")[0] not in {folder, *allowed}
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FLOORS)
def test_only_the_listed_libraries_are_used(folder: str) -> None:
    _, allowed = FLOORS[folder]
    wrong = [
        where(module, found)
        for module, imports in IMPORTS.items()
        if module.split(".")[0] == folder
        for found in imports
        if not found.ours and found.target not in allowed | sys.stdlib_module_names
    ]
    assert wrong == []


def test_sensitivity_sees_formats_and_rounding_only() -> None:
    wrong = [
        where(module, found)
        for module, imports in IMPORTS.items()
        if module.split(".")[0] == "sensitivity"
        for found in imports
        if found.ours
        and found.target.split(".")[0] == "kernels"
        and ".".join(found.target.split(".")[:2]) not in SENSITIVITY_SEES
    ]
    assert wrong == []


def test_triton_stays_in_the_launch_modules() -> None:
    wrong = [
        where(module, found)
        for module, imports in IMPORTS.items()
        for found in imports
        if found.target == "triton" and not found.ours and not module.startswith(LAUNCH_MODULES)
    ]
    assert wrong == []


def test_files_of_ours_import_each_other_relatively() -> None:
    wrong = [
        where(module, found) for module, imports in IMPORTS.items() for found in imports if found.ours and not found.relative
    ]
    assert wrong == []


def test_imports_of_ours_lead_to_files() -> None:
    """A name that no file bears would slip through every other test here."""
    wrong = [
        where(module, found)
        for module, imports in IMPORTS.items()
        for found in imports
        if found.ours and found.target not in MODULES.keys() | PACKAGES
    ]
    assert wrong == []


def test_no_loop_between_files() -> None:
    graph = {module: {found.target for found in imports if found.ours} for module, imports in IMPORTS.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("these files import each other in a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("module", LIGHT)
def test_planning_reaches_nothing_heavy(module: str) -> None:
    """Follow what is loaded when the file is imported, the faces of the folders on the way included."""
    came_from: dict[str, str] = {module: ""}
    queue = [module]
    while queue:
        here = queue.pop()
        parents = [here.rsplit(".", level)[0] for level in range(1, here.count(".") + 1)]
        loaded = [found.target for found in IMPORTS.get(here, []) if found.when_imported]
        for target in [*loaded, *parents]:
            if target not in came_from:
                came_from[target] = here
                queue.append(target)
    for name in HEAVY & came_from.keys():
        path = [name]
        while came_from[path[-1]]:
            path.append(came_from[path[-1]])
        pytest.fail(" <- ".join(path))
    assert module in MODULES


@pytest.mark.parametrize("path", [pytest.param(path, id=module) for module, path in MODULES.items()])
def test_files_stay_short_enough_to_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
