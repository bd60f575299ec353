"""Sweep: the result of many plans made at once, as a table with questions that one asks of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...allocator.errors import NotFound, UsageError
from ...allocator.home import write_whole
from ..schema import PlanSummary, SweepCell, SweepView

if TYPE_CHECKING:
    import altair
    import pandas

COLUMNS = (
    "model", "metric", "target", "budget", "plan_id", "bytes", "stored_bits_per_weight", "loss", "stderr", "quantity",
    "measured_loss", "verified", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Best:
    """A plan with the lowest loss, and whether that loss was measured or is what the plan's metric predicts."""

    plan: PlanSummary
    loss: float
    by: Literal["measured", "predicted"]


@dataclass(frozen=True)
class Sweep:
    """`rows` has a cell for every model, metric, target and budget, in this order; a cell has a plan or an error."""

    id: str
    rows: tuple[SweepCell, ...]

    @classmethod
    def of(cls, view: SweepView) -> Sweep:
        return cls(view.id, tuple(view.cells))

    @property
    def plans(self) -> tuple[PlanSummary, ...]:
        return tuple(row.plan for row in self.rows if row.plan is not None)

    def best(
        self, *, model: str | None = None, budget: str | None = None, target: str | None = None, metric: str | None = None
    ) -> Best:
        """The plan with the lowest loss among the rows that fit: measured when every one of them was measured, else
        predicted. Raises NotFound when no row that fits has a plan, UsageError when they cannot be compared: they are of
        several models, targets or budgets, or predicted in several quantities."""
        fitting = [
            (row, row.plan)
            for row in self.rows
            if row.plan is not None
            and (model is None or row.model == model)
            and (budget is None or row.budget == budget)
            and (target is None or row.target == target)
            and (metric is None or row.metric == metric)
        ]
        if not fitting:
            raise NotFound("no plan of the sweep fits; `rows` shows what was swept and why some have no plan")
        for name in ("model", "target", "budget"):
            values = sorted({getattr(row, name) for row, _ in fitting})
            if len(values) > 1:
                raise UsageError(f"the plans are for {len(values)} {name}s; choose one of {', '.join(values)} by {name}=")
        loss, by = _losses([plan for _, plan in fitting])
        if loss is None:
            raise UsageError("the metrics predict different quantities; choose one by metric=, or sweep with verify=True")
        at = min(range(len(loss)), key=loss.__getitem__)
        return Best(fitting[at][1], loss[at], by)

    def frontier(self) -> list[SweepCell]:
        """For every model and target the rows that no other one beats in both bytes and loss, smallest first. Losses are
        measured where all rows of the model and target were, else predicted, and then only compared in one quantity."""
        groups: dict[tuple[str, ...], list[tuple[SweepCell, PlanSummary]]] = {}
        for row in self.rows:
            if row.plan is not None:
                groups.setdefault((row.model, row.target), []).append((row, row.plan))
        kept: list[SweepCell] = []
        for rows in groups.values():
            measured, _ = _losses([plan for _, plan in rows])
            parts = [rows] if measured is not None else _by_quantity(rows)
            for part in parts:
                loss, _ = _losses([plan for _, plan in part])
                assert loss is not None
                kept += _undominated([row for row, _ in part], [plan.bytes for _, plan in part], loss)
        return kept

    def to_records(self) -> list[dict[str, Any]]:
        """One dictionary a row, with the names of COLUMNS; what a row lacks is None."""
        return [_record(row) for row in self.rows]

    def to_csv(self, path: Path | str) -> None:
        """Write the table, its first line the names of the columns."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_records())
        write_whole(Path(path), text.getvalue().encode())

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a DataFrame. Raises UsageError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas() needs pandas: pip install 'bitplan[plot]', or use to_records()") from None
        return pandas.DataFrame(self.to_records(), columns=list(COLUMNS))

    def plot(self) -> altair.FacetChart:
        """Loss against bytes on a logarithmic scale, one colour a metric, one panel a model and target. Raises UsageError
        where altair is not installed."""
        try:
            import altair
        except ImportError:
            raise UsageError("plot() needs altair: pip install 'bitplan[plot]', or write the table with to_csv()") from None
        chart: altair.FacetChart = _chart(altair, [record for record in self.to_records() if record["plan_id"] is not None])
        return chart


def _record(row: SweepCell) -> dict[str, Any]:
    plan = {} if row.plan is None else row.plan.model_dump()
    named = {"model": row.model, "metric": row.metric, "target": row.target, "budget": row.budget, "plan_id": plan.get("id")}
    return {name: plan.get(name) for name in COLUMNS} | named | {"error": None if row.error is None else row.error.detail}


def _losses(plans: Sequence[PlanSummary]) -> tuple[list[float] | None, Literal["measured", "predicted"]]:
    """Losses that can be compared with each other, and what they are; None when there are none such."""
    measured = [plan.measured_loss for plan in plans if plan.measured_loss is not None]
    if len(measured) == len(plans):
        return measured, "measured"
    return ([plan.loss for plan in plans] if len({plan.quantity for plan in plans}) == 1 else None), "predicted"


def _by_quantity(rows: Iterable[tuple[SweepCell, PlanSummary]]) -> list[list[tuple[SweepCell, PlanSummary]]]:
    parts: dict[str, list[tuple[SweepCell, PlanSummary]]] = {}
    for row, plan in rows:
        parts.setdefault(plan.quantity, []).append((row, plan))
    return list(parts.values())


def _undominated(rows: Sequence[SweepCell], sizes: Sequence[int], losses: Sequence[float]) -> list[SweepCell]:
    """By size, and where that is equal by loss, a row is kept when it loses less than all before it."""
    kept, least = [], float("inf")
    for at in sorted(range(len(rows)), key=lambda at: (sizes[at], losses[at])):
        if losses[at] < least:
            least = losses[at]
            kept.append(rows[at])
    return kept


def _chart(altair: Any, records: list[dict[str, Any]]) -> Any:
    """Losses of zero have no logarithm: a symmetric-log axis holds them, linear below the smallest loss that is not zero."""
    positive = [record["loss"] for record in records if record["loss"] > 0]
    scale = altair.Scale(type="symlog", constant=min(positive, default=1.0))
    points = (
        altair.Chart(altair.Data(values=[{**record, "MiB": record["bytes"] / 2**20} for record in records]))
        .mark_line(point=True)
        .encode(
            x=altair.X("MiB:Q", title="MiB of weights", scale=altair.Scale(zero=False)),
            y=altair.Y("loss:Q", title="predicted loss", scale=scale),
            color=altair.Color("metric:N"),
            tooltip=[f"{name}:N" for name in ("model", "target", "budget", "metric", "loss", "measured_loss", "plan_id")],
        )
        .properties(width=420, height=280)
    )
    return points.facet(row="target:N", column="model:N")
