"""The pages are kept true: what a user can name is described in README.md or docs/, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import typer.main

from bitplan.allocator import METRIC_SUMMARIES, SOLVERS, TARGETS
from bitplan.api.app import create_app
from bitplan.api.cli import app
from bitplan.api.settings import Settings
from bitplan.solvers.certificate import scaled
from bitplan.solvers.problem import ChoiceProblem

ROOT = Path(__file__).parent.parent
FOLDERS = ("allocator", "api", "kernels", "sensitivity", "solvers")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def variables() -> set[str]:
    code = "\n".join(path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return set(re.findall(r"\bBITPLAN_[A-Z_]+\b", code))


def targets_of_links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead, code blocks left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_described(command: str) -> None:
    assert re.search(rf"bitplan(?: [a-z]+ \|)*? +{command}\b|\| {command}\b", DOCS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_and_option_explains_itself(command: str) -> None:
    assert COMMANDS[command].help
    silent = [option.name for option in COMMANDS[command].params if not option.help]
    assert silent == []


@pytest.mark.parametrize("name", sorted({*METRIC_SUMMARIES, *SOLVERS, *TARGETS}))
def test_every_metric_solver_and_target_is_described(name: str) -> None:
    assert f"`{name}`" in DOCS


def test_environment_variables_are_described_and_no_others() -> None:
    assert set(re.findall(r"`(BITPLAN_[A-Z_]+)`", DOCS)) == variables()


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in targets_of_links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (heading and heading not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_pages_name_no_file_that_is_gone() -> None:
    """Paths in backticks such as `solvers/hull.py`, unless the page says on that line that they are planned."""
    gone = [
        f"{page.name}: {path}"
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if "planned" not in line
        for path in re.findall(r"`((?:allocator|api|kernels|sensitivity|solvers|tests|docs|scripts)/[\w./-]+\.\w+)`", line)
        if not (ROOT / path).exists() and "NAME" not in path
    ]
    assert gone == []


def test_the_tree_names_only_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("## 3. The tree")[1].split("## 4.")[0]
    named, folder = set(), ""
    for line in tree.splitlines():
        if heading := re.match(r" {4}(\w+)/ ", line + " "):
            folder = heading[1]
        elif entry := re.match(r" {6}((?:[\w/]+\.py +)+|\w+/ )", line + "  "):
            named |= {f"{folder}/{name}" for name in entry[1].split()}
    assert len(named) > 50
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_route_is_described(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    application = create_app(Settings.from_environment(home=tmp_path))
    paths = {re.sub(r"\{\w+_id\}", "{id}", path) for path in application.openapi()["paths"]}
    assert {path for path in paths if not re.search(rf"{re.escape(path)}[`?]", page)} == set()


def test_the_certificate_check_of_the_pages_accepts_the_true_and_refuses_the_false() -> None:
    """The program in docs/how-to-choose.md is run as it stands there."""
    page = (ROOT / "docs" / "how-to-choose.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    loss = np.array([[9.0, 4.0, 1.0, 0.0], [7.0, 5.0, 2.0, 0.0], [8.0, 2.0, 0.5, np.nan]])
    allowed = np.isfinite(loss)
    cost = np.array([[[2, 3, 4, 8]] * 3])
    problem = ChoiceProblem(np.where(allowed, loss, 0.0), cost, np.array([11]), allowed)
    solution, tables = SOLVERS["best"](problem), scaled(problem)
    assert solution.choice is not None
    assert solution.certificate is not None
    (price,) = solution.certificate.multipliers
    document: dict[str, Any] = {
        "loss": [[int(e) if ok else None for e, ok in zip(*row, strict=True)] for row in zip(tables.loss, allowed, strict=True)],
        "loss_scale": tables.scale,
        "cost": cost[0].tolist(),
        "limit": 11,
        "choice": solution.choice.tolist(),
        "multiplier_numerator": price.numerator,
        "multiplier_denominator": price.denominator,
    }
    total, bound = names["check"](document)
    assert total == pytest.approx(solution.loss)
    assert bound == pytest.approx(float(solution.certificate.lower_bound / tables.scale))
    for lie in ({"limit": 10}, {"multiplier_numerator": -price.numerator}, {"choice": [3, 3, 2]}):
        with pytest.raises(AssertionError):
            names["check"](document | lie)


def test_the_programs_of_the_solvers_page_are_true() -> None:
    page = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    programs = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(programs) == 5
    for program in programs:
        exec(program, names)
