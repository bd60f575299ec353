"""Sweep: the questions that one asks of many plans, with answers counted by hand and by brute force."""

from __future__ import annotations

import builtins
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.allocator.errors import NotFound, UsageError
from bitplan.api.client import Sweep
from bitplan.api.client.sweep import COLUMNS
from bitplan.api.schema import PlanSummary, Problem, SweepCell


def cell(index: int, **changes: Any) -> SweepCell:
    """A cell whose plan has what `changes` says, and one without a plan where they name an error."""
    row = {"model": "m", "metric": "a", "target": "native", "budget": "b"} | changes
    where = {name: row[name] for name in ("model", "metric", "target", "budget")}
    if "error" in row:
        error = Problem(type="/problems/budget-infeasible", title="No plan", status=422, detail=row["error"])
        return SweepCell(index=index, status="failed", error=error, **where)
    plan = PlanSummary(
        id=f"plan{index}",
        model=row["model"],
        target=row["target"],
        budget=row["budget"],
        limit_bytes=2000,
        bytes=row.get("bytes", 1000),
        loss=row.get("loss", 1.0),
        stderr=0.1,
        quantity=row.get("quantity", "nats per token"),
        metric=row["metric"],
        stored_bits_per_weight=4.25,
        created_at="2026-11-22T00:00:00.000Z",
        verified=None if row.get("measured") is None else True,
        measured_loss=row.get("measured"),
    )
    return SweepCell(index=index, status="succeeded", plan=plan, **where)


def sweep(*rows: dict[str, Any]) -> Sweep:
    return Sweep("sweep_1", tuple(cell(index, **row) for index, row in enumerate(rows)))


class TestBest:
    def test_measured_losses_decide_only_when_every_plan_was_measured(self) -> None:
        both = sweep({"loss": 1.0, "measured": 9.0}, {"metric": "z", "loss": 2.0, "measured": 3.0})
        best = both.best()
        assert (best.plan.id, best.loss, best.by) == ("plan1", 3.0, "measured")
        one = sweep({"loss": 1.0, "measured": 9.0}, {"metric": "z", "loss": 2.0})
        best = one.best()
        assert (best.plan.id, best.loss, best.by) == ("plan0", 1.0, "predicted")

    def test_rows_of_other_models_budgets_targets_and_metrics_do_not_compete(self) -> None:
        rows: list[dict[str, Any]] = [{"loss": 5.0}]
        rows += [{name: "other", "loss": 1.0} for name in ("model", "budget", "target", "metric")]
        best = sweep(*rows).best(model="m", budget="b", target="native", metric="a")
        assert (best.plan.id, best.loss) == ("plan0", 5.0)

    @pytest.mark.parametrize("name", ["model", "budget", "target"])
    def test_what_cannot_be_compared_is_refused_with_the_choices(self, name: str) -> None:
        mixed = sweep({name: "x"}, {name: "y"})
        with pytest.raises(UsageError, match=rf"2 {name}s; choose one of x, y by {name}="):
            mixed.best()
        assert mixed.best(**{name: "y"}).plan.id == "plan1"

    def test_predictions_in_two_quantities_are_not_compared_but_measurements_are(self) -> None:
        rows: list[dict[str, Any]] = [
            {"loss": 5.0, "quantity": "nats"},
            {"metric": "z", "loss": 1.0, "quantity": "squared error"},
        ]
        with pytest.raises(UsageError, match="metric=, or sweep with verify=True"):
            sweep(*rows).best()
        assert sweep(*rows).best(metric="z").by == "predicted"
        measured = [{**row, "measured": loss} for row, loss in zip(rows, (0.2, 0.3), strict=True)]
        assert sweep(*measured).best().plan.id == "plan0"

    def test_where_no_plan_fits_the_rows_say_why(self) -> None:
        with pytest.raises(NotFound, match="rows"):
            sweep({"error": "too small"}).best()
        with pytest.raises(NotFound):
            sweep({}).best(model="none")
        assert sweep({"error": "too small"}, {"loss": 7.0}).best().loss == 7.0


class TestFrontier:
    @given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9))
    def test_a_row_is_kept_when_no_other_beats_it(self, points: list[tuple[int, int]]) -> None:
        rows = sweep(*({"budget": str(at), "bytes": size, "loss": float(loss)} for at, (size, loss) in enumerate(points)))
        kept = [(row.plan.bytes, row.plan.loss) for row in rows.frontier() if row.plan]
        beaten = {
            (size, loss)
            for size, loss in points
            for other in points
            if other[0] <= size and other[1] <= loss and other != (size, loss)
        }
        assert kept == sorted(set(points) - beaten)

    def test_models_targets_and_quantities_have_frontiers_of_their_own(self) -> None:
        rows = sweep(
            {"bytes": 10, "loss": 1.0},
            {"bytes": 20, "loss": 2.0},
            {"bytes": 30, "loss": 3.0, "model": "n"},
            {"bytes": 40, "loss": 4.0, "target": "vllm"},
            {"bytes": 50, "loss": 5.0, "quantity": "squared error", "metric": "z"},
            {"error": "too small"},
        )
        assert [row.index for row in rows.frontier()] == [0, 4, 2, 3]

    def test_measured_losses_rule_where_all_were_measured(self) -> None:
        rows = sweep({"bytes": 10, "loss": 1.0, "measured": 5.0}, {"bytes": 20, "loss": 2.0, "measured": 4.0})
        assert [row.index for row in rows.frontier()] == [0, 1]
        half = sweep({"bytes": 10, "loss": 1.0, "measured": 5.0}, {"bytes": 20, "loss": 2.0})
        assert [row.index for row in half.frontier()] == [0]


class TestTables:
    ROWS = sweep({"loss": 0.0}, {"metric": "z", "loss": 2.0, "measured": 2.5, "budget": "c"}, {"error": 'no "fit", sorry'})

    def test_csv_holds_every_row_and_can_be_read_back(self, tmp_path: Path) -> None:
        self.ROWS.to_csv(tmp_path / "deep" / "sweep.csv")
        with (tmp_path / "deep" / "sweep.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        assert tuple(read[0]) == COLUMNS
        expected = [{name: "" if row[name] is None else str(row[name]) for name in COLUMNS} for row in self.ROWS.to_records()]
        assert read == expected
        assert [row["plan_id"] for row in read] == ["plan0", "plan1", ""]
        assert read[2]["error"] == 'no "fit", sorry'

    def test_pandas_gets_the_same_table(self) -> None:
        frame = self.ROWS.to_pandas()
        assert tuple(frame.columns) == COLUMNS
        assert frame["bytes"].tolist()[:2] == [1000, 1000]
        assert frame["measured_loss"].tolist()[1] == 2.5

    def test_the_plot_has_a_point_for_each_plan(self) -> None:
        chart = json.loads(self.ROWS.plot().to_json())
        (values,) = list(chart["datasets"].values()) if "datasets" in chart else [chart["data"]["values"]]
        assert [value["plan_id"] for value in values] == ["plan0", "plan1"]
        assert {"MiB", "loss", "metric"} <= set(values[0])

    @pytest.mark.parametrize(("package", "verb"), [("pandas", "to_pandas"), ("altair", "plot")])
    def test_what_is_not_installed_is_named_with_the_remedy(
        self, monkeypatch: pytest.MonkeyPatch, package: str, verb: str
    ) -> None:
        real = builtins.__import__

        def without(name: str, *rest: Any, **more: Any) -> Any:
            if name == package:
                raise ImportError(name)
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(UsageError, match=r"pip install 'bitplan\[plot\]'"):
            getattr(self.ROWS, verb)()
