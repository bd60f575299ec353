"""The demo: the main job on a real language model, from a byte budget to a verified plan and its report.

    python -m bitplan.api.demo

Profiles SmolLM2-135M-Instruct (a GGUF inside an installed package), solves for 60 MiB, quantizes, measures the result
against its promise and against the uniform plans of the same size, and writes `demo/plan.json` and `demo/report.html`.
What was measured is kept under BITPLAN_HOME: the second run measures only the verification again. Plans for a few other
budgets follow from the same measurements in no time, so that the dashboard of `make serve` has something to compare.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

MODEL = "smollm2-135m"
BUDGET = "60MiB"
OTHER_BUDGETS = ("50MiB", "70MiB", "85MiB", "100MiB", "130MiB")
FOLDER = Path("demo")
TOKENS = 2048  # for rounding, as many for estimating, as many for verifying


def main() -> int:
    """Run the demo; 0 when the plan kept its promise, 4 when not, as `bitplan verify` would exit."""
    from ..allocator.errors import BitplanError
    from ..allocator.home import write_whole
    from . import bars, terminal
    from .jobs import work
    from .report import report_html
    from .schema import PlanBody
    from .settings import Settings
    from .store import Store

    started = time.perf_counter()
    console = Console(highlight=False)
    console.print(f"[bold]bitplan[/]: the best plan for {MODEL} within {BUDGET}, measured against its promise\n")
    settings = Settings.from_environment()
    store = Store.open(settings.database_url)
    try:
        with bars.progress_bars() as tell:
            plan = work.make_plan(store, settings.home, PlanBody(model=MODEL, budget=BUDGET, tokens=TOKENS), tell)
        console.print(terminal.plan_summary(plan), "")
        for budget in OTHER_BUDGETS:
            work.make_plan(store, settings.home, PlanBody(model=MODEL, budget=budget, tokens=TOKENS), silent)
        with bars.progress_bars() as tell:
            report = work.verify_plan(store, settings.home, plan, tell)
        plan = store.plan(plan.id)
    except BitplanError as error:
        print(f"bitplan: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bitplan: interrupted; what was measured is kept, and `make demo` goes on from there", file=sys.stderr)
        return 130
    finally:
        store.close()
    console.print(terminal.evidence_table(plan, report.to_json()), "")
    write_whole(FOLDER / "plan.json", plan.to_json().encode())
    write_whole(FOLDER / "report.html", report_html(plan, report.to_json()).encode())
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")
    console.print(f"  {FOLDER / 'report.html'}    the report: bit map, frontier, promise beside fact; open it in a browser")
    console.print(f"  {FOLDER / 'plan.json'}      the plan with its certificate")
    console.print("  make serve          the dashboard with this and other plans, at http://127.0.0.1:8000")
    return 0 if report.passed else 4


def silent(stage: str, done: int, total: int) -> None:
    """Work that takes milliseconds needs no bar."""


if __name__ == "__main__":
    sys.exit(main())
