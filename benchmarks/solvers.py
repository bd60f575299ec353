"""How fast and how well do our solvers choose, beside the tools that others use, from 224 layers to a million groups?

    python benchmarks/solvers.py [--table FILE] [--seed N] [--time-limit SECONDS] [--budgets N] [--quick] [--out FOLDER]

Every run has a process, a core and a thread to itself (`alone.py`), and all solvers get the same problems (`workloads.py`) in
one run: compare ratios, since seconds depend on the machine. The table is that of LLaMA-3.1-8B from Q-Palette, where given.

Rivals (`rivals.py`) get fewer budgets, since they take minutes. They are left out, and the results say so,

- at sizes beyond the one where they were stopped without a choice, by the time or the memory;
- beyond a million pairs of item and option: each is a variable to them, and those at a quarter of that take the time limit;
- where they are not installed.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tally
from alone import RIVALS, Job, run
from loglog import Line, loglog
from machine import describe
from workloads import EXPERTS, Workload

ONE_LIMIT = ("best", "hull", "frontier")
PAIRS_FOR_RIVALS = 1_000_000
MEMORY = 8 * 2**30
PACKAGES = ("numpy", "scipy", "pulp", "highspy", "ortools", "cvxpy")
LABELS = ["main", "workload", "family", "items", "options", "resources", "budget", "seed", "solver"]
MEASURED = ["seconds", "import_seconds", "peak_bytes", "added_bytes", "word", "optimal", "proof", "gap", "binding", "vertices"]
COLUMNS = [*LABELS, *MEASURED, "loss", "scaled_loss", "above", "broken", "stopped"]
FULL = (
    Workload("projections", 224, 15),
    Workload("layers", 1000, 8),
    Workload("experts", EXPERTS, 6),
    Workload("groups", 1_000_000, 6),
    Workload("layers", 1000, 8, resources=2),
    Workload("experts", EXPERTS, 6, resources=2),
)
QUICK = (
    Workload("projections", 224, 15),
    Workload("layers", 200, 8),
    Workload("experts", 1500, 6),
    Workload("groups", 20_000, 6),
    Workload("layers", 200, 8, resources=2),
    Workload("experts", 1500, 6, resources=2),
)
GROWTH = (1_000, 10_000, 100_000)  # and the size of `groups` in the comparison
GROWTH_QUICK = (1_000, 5_000)
MANY_PAIRS, FEW_BUDGETS = 1_000_000, 3  # of our own, where a run takes ten seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="Q-Palette's coefficients and distortions (JSON); without, made up alike")
    parser.add_argument("--seed", type=int, default=1, help="of tables and budgets")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a problem")
    parser.add_argument("--budgets", type=int, default=5, help="budgets a size, for our own solvers")
    parser.add_argument("--rival-budgets", type=int, default=1, help="budgets a size, for the rivals")
    parser.add_argument("--quick", action="store_true", help="small sizes, 5 seconds, two budgets: to see that it works")
    parser.add_argument("--out", type=Path, help="folder for solvers.csv, .json, .svg: results/, or a temporary one if quick")
    options = parser.parse_args()
    if options.quick:
        options.time_limit, options.budgets = 5.0, 2
    if options.out is None:
        options.out = Path(tempfile.gettempdir()) / "solvers-quick" if options.quick else Path(__file__).parent / "results"
    rows = measure(options, QUICK if options.quick else FULL, GROWTH_QUICK if options.quick else GROWTH)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "solvers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    command = f"python benchmarks/solvers.py --seed {options.seed} --time-limit {options.time_limit:g}"
    command += f" --budgets {options.budgets} --rival-budgets {options.rival_budgets}" + " --quick" * options.quick
    command += f" --table {options.table.name}" if options.table else ""
    document = {
        "question": "how fast and how well do our solvers choose, beside those that others use",
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES},
        "memory_limit_bytes": MEMORY,
        "threads": 1,
        "warm": "imports, tables and one small problem come before the clock",
    }
    (options.out / "solvers.json").write_text(json.dumps(document, indent=1) + "\n")
    told = tally.read(options.out / "solvers.csv")
    (options.out / "solvers.svg").write_text(figure(told))
    print("\n".join(["", *tally.comparison(told), "", *tally.growth(told), "", *goals(told)]))


def measure(options: argparse.Namespace, workloads: tuple[Workload, ...], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """All rows of the table, problem by problem, so that what disturbs the machine disturbs all solvers alike."""
    rows: list[dict[str, Any]] = []
    given_up: dict[str, tuple[int, str]] = {}  # rival: the largest size that it is still asked to solve, and why
    if importlib.util.find_spec("ortools") is None:
        given_up["cpsat"] = 0, "not run: OR-Tools is not installed"
    for workload in workloads:
        ours = ONE_LIMIT if workload.resources == 1 else ("lagrangian",)
        # With two limits a rival serves to show how good the bound is; the others have had their say.
        rivals = RIVALS if workload.resources == 1 else ("scipy_milp",)
        if workload.pairs > PAIRS_FOR_RIVALS:
            left_out = dict.fromkeys(rivals, f"not run: {workload.pairs:,} variables")
        else:
            left_out = {
                rival: given_up[rival][1] for rival in rivals if workload.pairs > given_up.get(rival, (workload.pairs, ""))[0]
            }
        budgets = min(options.budgets, FEW_BUDGETS) if workload.pairs > MANY_PAIRS else options.budgets
        for budget in range(budgets):
            asked = ours + tuple(rival for rival in rivals if budget < options.rival_budgets and rival not in left_out)
            rows += compared([one(workload, budget, solver, options) for solver in asked])
        for rival, reason in left_out.items():
            rows.append(labels(workload, 0, rival, options) | {"stopped": reason})
            print(f"{workload.name:32} {rival:16} {reason}", flush=True)
        for rival in RIVALS:
            stops = [row for row in rows if row["solver"] == rival and row["workload"] == workload.name and row.get("stopped")]
            if rival not in given_up and any("loss" not in row for row in stops):
                given_up[rival] = workload.pairs, f"not run: stopped without a choice at {workload.name}"
    for items in sizes:
        for budget in range(FEW_BUDGETS):
            for solver in ("best", "frontier"):
                rows.append(one(Workload("groups", items, 6), budget, solver, options) | {"main": 0})
    return rows


def labels(workload: Workload, budget: int, solver: str, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "main": 1,
        "workload": workload.name,
        "family": workload.family,
        "items": workload.items,
        "options": workload.options,
        "resources": workload.resources,
        "budget": budget,
        "seed": options.seed,
        "solver": solver,
    }


def one(workload: Workload, budget: int, solver: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: one solver on one problem."""
    job = Job(
        solver,
        workload.family,
        workload.items,
        workload.options,
        workload.resources,
        budget,
        options.seed,
        None if options.table is None else str(options.table.resolve()),
        options.time_limit,
        MEMORY,
    )
    told = run(job)
    row = labels(workload, budget, solver, options) | {key: int(v) if isinstance(v, bool) else v for key, v in told.items()}
    seconds = "" if told["seconds"] is None else f"{told['seconds']:9.3f} s"
    words = f"stopped by {told['stopped']}" if "stopped" in told else told.get("word", f"{told.get('vertices')} vertices")
    print(f"{workload.name:32} {solver:16} {budget} {seconds} {told['peak_bytes'] / 1e6:7.0f} MB  {words}", flush=True)
    return row


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one problem, each told how far above the least loss it is that any of them reached within the limits."""
    kept = [row["scaled_loss"] for row in rows if "scaled_loss" in row and not row["broken"]]
    for row in rows:
        if "scaled_loss" in row and kept:
            row["above"] = row["scaled_loss"] / min(kept) - 1 if min(kept) else 0.0
    return rows


def figure(rows: list[tally.Row]) -> str:
    """Median time against items, a line a solver over the sizes of the comparison; dashed, one family over many sizes."""
    lines: dict[str, dict[int, list[float]]] = {}
    stopped: dict[str, set[float]] = {}
    for row in rows:
        if row["main"] == "1" and row["seconds"]:
            name = row["solver"] + (", two limits" if row["resources"] == "2" else "")
            lines.setdefault(name, {}).setdefault(int(row["items"]), []).append(float(row["seconds"]))
            if row["stopped"] or (row["solver"] in RIVALS and row["optimal"] != "1"):
                stopped.setdefault(name, set()).add(float(row["items"]))
    drawn = [
        Line(
            name,
            tuple((float(items), sorted(times)[len(times) // 2]) for items, times in sorted(sizes.items())),
            frozenset(stopped.get(name, set())),
        )
        for name, sizes in lines.items()
    ]
    for solver in ("best", "frontier"):
        points = tuple((float(items), seconds) for items, seconds in tally.medians(rows, solver))
        drawn.append(Line(f"{solver}, groups", points, dashed=True))
    return loglog(
        drawn, "items", "seconds (rings: stopped or not called optimal)", "Time of the solvers against the size of the problem"
    )


def goals(rows: list[tally.Row]) -> list[str]:
    """What the solvers are meant to keep, and whether they did."""
    frontier = [row for row in rows if row["solver"] == "frontier" and row["items"] == "1000000"]
    two = [row for row in rows if row["solver"] == "lagrangian" and row["items"] == "44544"]
    one = [(224, 0.02), (44544, 0.15)]
    lines = []
    for items, most in one:
        if own := [float(row["seconds"]) for row in rows if row["solver"] == "best" and row["items"] == str(items)]:
            kept = "kept" if max(own) <= most else "MISSED"
            lines.append(
                f"best proves {items:,} items within {most} s: {sorted(own)[len(own) // 2]:.3f} s, {max(own):.3f} s: {kept}"
            )
    if frontier:
        seconds, peak = max(float(row["seconds"]) for row in frontier), max(float(row["peak_bytes"]) for row in frontier)
        kept = "kept" if seconds <= 3 and peak <= 1.5e9 else "MISSED"
        lines.append(f"frontier of 1,000,000 x 6 within 3 s and 1.5 GB: {seconds:.2f} s, {peak / 1e9:.2f} GB at worst: {kept}")
    if two:
        seconds, gap = max(float(row["seconds"]) for row in two), max(float(row["gap"] or "inf") for row in two)
        both = all(row["binding"] == "1" for row in two)
        kept = "kept" if seconds <= 2 and gap <= 1e-4 and both else "MISSED"
        lines.append(
            f"44,544 x 6, two limits, within 1e-4 and 2 s: {gap:.1e}, {seconds:.2f} s at worst, both bind: {both}: {kept}"
        )
    return lines


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
