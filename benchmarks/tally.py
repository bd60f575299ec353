"""What the rows of results/solvers.csv say: tables of medians, and how times grow. Measures nothing."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import numpy as np

Row = dict[str, str]  # a line of the file, by column

GROWING = "groups"  # the family whose times are compared over sizes


def read(file: Path) -> list[Row]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def number(row: Row, column: str) -> float | None:
    return float(row[column]) if row[column] else None


def by_solver(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by workload and solver, in the order of the file."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["workload"], row["solver"]), []).append(row)
    return groups


def comparison(rows: list[Row]) -> list[str]:
    """One line a workload and solver, as Markdown. Ratios are of the same problems in the same run."""
    heads = ["problem", "solver", "runs", "median s", "worst s", "times `best`", "peak MB (added)", "called optimal"]
    heads += ["certified gap, worst", "above the best known, worst"]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    groups = by_solver([row for row in rows if row["main"] == "1"])
    for (workload, solver), group in groups.items():
        lead = "lagrangian" if (workload, "best") not in groups else "best"
        ran = [row for row in group if row["seconds"]]
        if not ran:
            lines.append(f"| {workload} | {solver} | 0 | {group[0]['stopped']} |" + " |" * 6)
            continue
        seconds = [float(row["seconds"]) for row in ran]
        reference = {row["budget"]: float(row["seconds"]) for row in groups.get((workload, lead), []) if row["seconds"]}
        ratios = [float(row["seconds"]) / reference[row["budget"]] for row in ran if row["budget"] in reference]
        ratio = (
            "" if solver == lead or not ratios else f"{statistics.median(ratios):.2g}" + (" (of `lagrangian`)" * (lead != "best"))
        )
        peak = max(number(row, "peak_bytes") or 0.0 for row in ran) / 1e6
        added = max(number(row, "added_bytes") or 0.0 for row in ran) / 1e6
        shown = [_seconds(statistics.median(seconds)), _seconds(max(seconds)), ratio, f"{peak:,.0f} ({added:,.0f})"]
        shown += [_optimal(ran), _worst(ran, "gap"), _above(ran)]
        lines.append(f"| {workload} | {solver} | {len(ran)} | {' | '.join(shown)} |")
    return lines


def growth(rows: list[Row]) -> list[str]:
    """Median times over sizes, the exponent that fits them best, and that of n log n over the same sizes; as Markdown."""
    times = {solver: medians(rows, solver) for solver in ("best", "frontier")}
    sizes = sorted({items for points in times.values() for items, _ in points})
    if len(sizes) < 2:
        return []
    lines = [
        "| solver | " + " | ".join(f"n = {items:,}" for items in sizes) + " | exponent | of n log n |",
        "| --- |" + " --- |" * (len(sizes) + 2),
    ]
    for solver, points in times.items():
        at = dict(points)
        shown = " | ".join(_seconds(at[items]) + " s" if items in at else "" for items in sizes)
        fitted = exponent([(float(items), seconds) for items, seconds in points])
        ideal = exponent([(float(items), items * float(np.log(items))) for items, _ in points])
        lines.append(f"| {solver} | {shown} | {fitted:.2f} | {ideal:.2f} |")
    return lines


def medians(rows: list[Row], solver: str, family: str = GROWING) -> list[tuple[int, float]]:
    """(items, median seconds) of a solver on a family with one limit, by size."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["solver"] == solver and row["family"] == family and row["resources"] == "1" and row["seconds"]:
            found.setdefault(int(row["items"]), []).append(float(row["seconds"]))
    return [(items, statistics.median(seconds)) for items, seconds in sorted(found.items())]


def exponent(points: list[tuple[float, float]]) -> float:
    """The k of y = c x^k that fits points (x, y) best in logarithms."""
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _optimal(rows: list[Row]) -> str:
    """How many it calls optimal, and what shows that; for the rest, what became of them."""
    if not rows[0]["word"] and not rows[0]["stopped"]:
        return "all budgets at once"
    called = sum(row["optimal"] == "1" for row in rows)
    proofs = sorted({row["proof"] for row in rows if row["optimal"] == "1" and row["proof"]})
    stopped = sorted({f"stopped by {row['stopped']}" for row in rows if row["stopped"]})
    return f"{called} of {len(rows)}" + "".join(f", {each}" for each in [*proofs, *stopped])


def _worst(rows: list[Row], column: str) -> str:
    values = [float(row[column]) for row in rows if row[column]]
    return f"{max(values):.1e}" if values else ""


def _above(rows: list[Row]) -> str:
    """The most loss above the best known; how often there was no choice, or one that breaks a limit."""
    none = sum(not row["loss"] for row in rows)
    over = sum(bool(row["broken"]) for row in rows)
    if none == len(rows):
        return "no choice" if rows[0]["stopped"] or rows[0]["word"] else ""
    return _worst(rows, "above") + f", {none} without a choice" * (none > 0) + f", {over} over the limit" * (over > 0)
