"""What the command line prints of one model or one plan: tables, and the bit map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import wording
from .layout import Cell, bit_map
from .report import format_rows, loss_rows

if TYPE_CHECKING:
    from ..allocator import Inventory, Plan, SensitivityReport
    from ..allocator.spiked import Spike

# Background and foreground of a cell, from few bits (warm) to many (cold), as in the report.
COLOURS = {2: "#fde7b3", 3: "#f7cf83", 4: "#a9d3c4", 5: "#7fbcb4", 6: "#579fa4", 7: "#3a8093", 8: "#2b6480", 16: "#1f3a5f"}


def plan_summary(plan: Plan) -> Group:
    """A plan in a dozen lines: bytes against budget, loss, bound, histogram of formats, where to go next."""
    predicted, budget, short = plan.predicted, plan.budget, plan.id[:12]
    head = Text.assemble(("Plan ", "bold"), (short, "bold cyan"), f"  {plan.model.id} for {plan.target}, budget {budget.text}")
    facts = Table.grid(padding=(0, 2))
    used = predicted.bytes.total / budget.limit_bytes if budget.limit_bytes else 1.0
    facts.add_row("bytes", f"{wording.size(predicted.bytes.total)} of {wording.size(budget.limit_bytes)} ({100 * used:.2f} %)")
    facts.add_row(
        "loss", f"{wording.loss(predicted.loss, predicted.stderr)} {predicted.quantity}, predicted by {plan.provenance.metric}"
    )
    facts.add_row("bound", f"{wording.number(plan.certificate.lower_bound)}: {wording.proof(plan)}")
    facts.add_row(
        "bits", f"{predicted.stored_bits_per_weight:.2f} a weight stored, {predicted.nominal_bits_per_weight:.2f} nominal"
    )
    if predicted.latency is not None and budget.latency is not None:
        facts.add_row("latency", wording.latency(predicted.latency, budget.latency))
    histogram = Table.grid(padding=(0, 2))
    rows = format_rows(plan)
    most = max((row["bytes"] for row in rows), default=1)
    for row in rows:
        bar = "━" * max(1, round(24 * row["bytes"] / most))
        units = f"{row['units']} unit{'s' if row['units'] != 1 else ''}"
        histogram.add_row(
            row["format"], Text(units, justify="right"), Text(wording.size(row["bytes"]), justify="right"), Text(bar, "cyan")
        )
    parts: list[Any] = [
        head,
        Text(),
        Padding(facts, (0, 2), expand=False),
        Text(),
        Padding(histogram, (0, 2), expand=False),
        Text(),
    ]
    parts += [Padding(Text(note, "yellow"), (0, 2)) for note in plan.notes]
    parts.append(Text(f"  Next: bitplan verify {short} · bitplan show {short} · bitplan execute {short} --out DIR", "dim"))
    return Group(*parts)


def plan_map(plan: Plan) -> Group:
    """The bit map: a row for each layer, a column for each role, the bits of a code in each cell."""
    found = bit_map(plan)
    parts: list[Any] = []
    for stack in found.stacks:
        table = Table(title=stack.name, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("layer", justify="right", style="dim")
        for role in stack.roles:
            table.add_column(role.replace(".", "\n"), justify="left", header_style="dim")
        for layer in stack.layers:
            table.add_row(str(layer), *(_cells(stack.cells.get((layer, role), ())) for role in stack.roles))
        parts += [table, Text()]
    for cell in found.outside:
        parts.append(Text.assemble(_cells((cell,)), f"  {cell.unit}  ", (cell.format, "dim")))
    return Group(*parts)


def evidence_table(plan: Plan, report: dict[str, Any]) -> Group:
    """Promise beside fact, and the plan beside its rivals."""
    mark, style = wording.verdict(report), "green" if report["passed"] else "red"
    head = Text.assemble(("Plan ", "bold"), (plan.id[:12], "bold cyan"), " ", (mark, f"bold {style}"), f": {report['verdict']}")
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("")
    table.add_column(f"loss, {report['quantity']}", justify="right")
    table.add_column("bytes", justify="right")
    for row in loss_rows(plan, report):
        table.add_row(
            row["name"], wording.loss(row["loss"], row["stderr"]), f"{row['bytes']:,}", style="bold" if row["mine"] else ""
        )
    parts: list[Any] = [head, Text(), Padding(table, (0, 2), expand=False)]
    task = report.get("task")
    if task:
        numbers = ", ".join(
            f"{name} {wording.figure(task[name])}" for name in ("untouched", "plan", "rival") if task[name] is not None
        )
        parts += [Text(), Text(f"  {task['name']}: {numbers}")]
    if products := wording.products(report):
        parts.append(Text(f"  kernels: {products}"))
    return Group(*parts)


def profile_table(report: SensitivityReport, model: str) -> Group:
    """What one format everywhere would cost, predicted, and the units that mind most."""
    head = Text.assemble(
        ("Profile ", "bold"), (report.id[:12], "bold cyan"), f"  {model} by {report.metric}, {report.seconds:.1f} s"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("format everywhere")
    table.add_column(f"loss, {report.quantity}", justify="right")
    table.add_column("minds most")
    for column, name in enumerate(report.formats):
        losses = [
            (float(value), unit) for value, unit in zip(report.loss[:, column], report.units, strict=True) if value == value
        ]
        if losses:
            worst = max(losses)
            most = f"{worst[1]} ({wording.number(worst[0])})" if worst[0] > 0 else ""
            table.add_row(name, wording.number(sum(value for value, _ in losses)), most)
    return Group(
        head,
        Text(),
        Padding(table, (0, 2), expand=False),
        *(Text(f"  {note}", "dim") for note in report.notes),
        Text(),
        Text(f"  Next: bitplan plan {model} --budget 60MiB", "dim"),
    )


def spikes_table(spikes: Sequence[Spike], pins: Sequence[tuple[str, str]], shown: int = 10) -> Group:
    """The units whose inputs stand out most, and how to protect those above the threshold."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("unit")
    for name in ("largest input", "0.999 quantile", "ratio"):
        table.add_column(name, justify="right")
    for spike in spikes[:shown]:
        table.add_row(spike.unit, *(wording.number(value) for value in (spike.largest, spike.quantile, spike.ratio)))
    advice = " ".join(f"--pin '{pattern}={fmt}'" for pattern, fmt in pins)
    said = f"  {len(pins)} to protect: {advice}" if pins else "  none stands out: nothing to protect"
    return Group(Padding(table, (0, 2), expand=False), Text(), Text(said, "dim"))


def plan_page(plan: Plan) -> Group:
    """Summary, bit map, and what was measured."""
    parts: list[Any] = [plan_summary(plan), Text(), plan_map(plan)]
    if plan.evidence is not None:
        parts += [Text(), evidence_table(plan, plan.evidence)]
    return Group(*parts)


def inventory_table(inventory: Inventory) -> Group:
    """Units by role and shape, and what no plan touches."""
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for unit in inventory.units:
        shapes = ", ".join(f"{rows} x {columns}" for rows, columns in dict.fromkeys(matrix.shape for matrix in unit.matrices))
        kinds.setdefault((unit.role, unit.kind, shapes), []).append(unit.parameters)
    head = Text.assemble(
        (inventory.model_id, "bold"), f"  {inventory.architecture} ({inventory.family}), {wording.size(inventory.native_bytes)}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in ("role", "kind", "shape"):
        table.add_column(name)
    table.add_column("units", justify="right")
    table.add_column("parameters", justify="right")
    for (role, kind, shapes), sizes in kinds.items():
        table.add_row(role, kind, shapes, str(len(sizes)), f"{sum(sizes):,}")
    parts: list[Any] = [head, Text(), Padding(table, (0, 2), expand=False), Text()]
    for unit in inventory.units:
        if unit.shared_with:
            parts.append(Text(f"  {unit.name} is one parameter with {', '.join(unit.shared_with)}"))
    reasons: dict[str, list[int]] = {}
    for tensor in inventory.fixed:
        reasons.setdefault(tensor.reason, []).append(tensor.stored_bytes)
    for reason, sizes in reasons.items():
        parts.append(Text(f"  left alone: {len(sizes)} tensors, {wording.size(sum(sizes))} ({reason})", "dim"))
    return Group(*parts)


def diff_table(difference: dict[str, Any]) -> Group:
    """The units that differ, largest change of bytes first."""
    a, b = difference["a"], difference["b"]
    count = sum(len(row["units"]) for row in difference["rows"])
    head = Text.assemble(
        (a["id"][:12], "bold cyan"), " -> ", (b["id"][:12], "bold cyan"), f"  {count} of {difference['units']} units differ"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("units")
    for name in ("format", "bytes", "loss"):
        table.add_column(name, justify="right" if name != "format" else "left")
    for row in difference["rows"]:
        units = row["units"][0] + (f" and {len(row['units']) - 1} more" if len(row["units"]) > 1 else "")
        table.add_row(units, _change("/".join(row["a"]["formats"]), "/".join(row["b"]["formats"])), *_changes(row["a"], row["b"]))
    table.add_row(Text("whole model", "bold"), "", *_changes(a, b))
    return Group(head, Text(), Padding(table, (0, 2), expand=False))


def frontier_table(points: list[dict[str, float]], quantity: str, rows: int = 24) -> Table:
    """At most `rows` vertices, evenly spread; the file that --out writes has them all."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in ("size", f"loss, {quantity}", "one more MiB saves"):
        table.add_column(name, justify="right")
    step = max(1, -(-len(points) // rows))
    for point in [*points[:-1:step], *points[-1:]]:
        saved = point["multiplier"] * wording.MIB
        table.add_row(wording.size(point["bytes"]), wording.number(point["loss"]), wording.number(saved))
    return table


def _cells(cells: tuple[Cell, ...]) -> Text:
    text = Text()
    for cell in cells:
        background = COLOURS[min(known for known in COLOURS if cell.bits <= known or known == 16)]
        foreground = "#ffffff" if cell.bits >= 6 else "#2a2416"
        text.append(f"{cell.bits}" if len(cells) > 1 else f" {cell.bits:>2} ", f"{foreground} on {background}")
    return text


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _changes(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, str]:
    return f"{b['bytes'] - a['bytes']:+,}", f"{wording.number(a['loss'])} -> {wording.number(b['loss'])}"
