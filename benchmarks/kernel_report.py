"""What `kernels.py` measured: as a table, and as the constants of the latency formula."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import kernel_checkout  # noqa: F401 (first)
from bitplan.kernels.latency_fit import fit as fitted
from bitplan.kernels.latency_json import device_model, devices, from_json, to_json
from bitplan.kernels.roofline import DeviceModel, Point, formula
from kernel_cases import Case
from kernel_clock import Lines, short, versions

LIKE = "h100"  # whose starting constants serve a device that has none
DENSE = "torch.matmul"
MOST_LINES, MOST_CHANGES, MOST_PROBLEMS = 60, 12, 8


def start_of(name: str) -> DeviceModel:
    """The constants to begin with, and to predict by: the device's own where it has a table."""
    return device_model(short(name) if short(name) in devices() else LIKE)


def predicted(name: str, case: Case) -> float | None:
    """Seconds by the formula before anything was fitted; None for a device without a table."""
    if short(name) not in devices():
        return None
    point = Point("", case.outputs, case.inputs, case.bits[0], case.rows, 0.0, case.group)
    return formula(point, device_model(short(name)).constants)


def floor(line: dict[str, Any], ceilings: dict[str, Any]) -> float:
    """Seconds that the bytes or the operations of a product take at the rates that were measured."""
    outputs, inputs = line["shape"]
    operations = 2 * outputs * inputs * line["rows"]
    return max(float(line["bytes"] / ceilings["bandwidth"]), float(operations / ceilings["tensor_rate"]))


def measured(lines: Lines, stage: str) -> list[dict[str, Any]]:
    return [line for line in lines.of(stage).values() if "seconds" in line]


def points(lines: Lines) -> list[Point]:
    """One for each product, and one for each dense one: the median of its medians beside the widths."""
    found, dense = [], defaultdict(list)
    for line in measured(lines, "time"):
        outputs, inputs = line["shape"]
        found.append(Point(line["kernel"], outputs, inputs, line["bits"][0], line["rows"], line["seconds"], line["group"]))
        dense[outputs, inputs, line["rows"]].append(line["beside"])
    for (outputs, inputs, rows), each in dense.items():
        found.append(Point(DENSE, outputs, inputs, 16, rows, statistics.median(each), None))
    return found


def fit(lines: Lines, name: str) -> bool:
    """Write latency_DEVICE.json beside the lines; False where too little was measured."""
    there, ceilings = points(lines), lines.of("ceilings").get("ceilings")
    # The formula does not know the kernel that writes a matrix out first: such points are kept, and not fitted.
    seen = [point for point in there if point.kernel != "dequantize"]
    if ceilings is None or len({point.shape for point in seen}) < 2:
        print("fit: too little was measured: it takes the ceilings and two shapes", flush=True)
        return False
    start, device = start_of(name), short(name)
    rates = {rate: ceilings[rate] for rate in ("bandwidth", "tensor_rate", "issue_rate", "t0") if rate in ceilings}
    model = fitted(replace(start, name=device, constants=replace(start.constants, **rates)), seen)
    note = f"Fitted by benchmarks/kernels.py; c and block_rows are those of {start.name}, counted in compiled kernels."
    if device == "dry-run":
        note = "Of a dry run: no number means anything."
    run = min(line["run"] for line in measured(lines, "time"))
    model = replace(model, date=run[:10], machine=name, versions=versions(), note=note, points=tuple(there))
    document = to_json(model)
    from_json(document, "latency table")  # raises for what could not be read again
    path = lines.path.parent / f"latency_{device}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    error = "nothing" if model.fit_error is None else f"{100 * model.fit_error:.0f} %"
    print(f"fit: {path.name}, off by {error} at the shape that was held out", flush=True)
    return True


def table(lines: Lines, name: str) -> list[str]:
    ceilings = lines.of("ceilings").get("ceilings")
    rows = [f"{name}: times are of products in a CUDA graph" if name != "dry-run" else "dry run: NO NUMBER BELOW MEANS ANYTHING"]
    if ceilings is None:
        return [*rows, "no ceilings were measured, so there is no table"]
    rows.append(
        f"copies {ceilings['bandwidth'] / 1e12:.2f} TB/s, bf16 products {ceilings['tensor_rate'] / 1e12:.0f} TFLOP/s, "
        f"empty launch {1e6 * ceilings['t0']:.2f} us"
    )
    checks = list(lines.of("correct").values())
    rows.append(f"right: {sum(bool(line.get('ok')) for line in checks)} of {len(checks)} products")
    rows += _products(measured(lines, "time"), ceilings)
    rows += _beside(measured(lines, "mixed"), "mixed widths: us, and as a multiple of one width of the same mean")
    changes = sorted(measured(lines, "changes"), key=lambda line: -_faster(line))[:MOST_CHANGES]
    rows += _beside(changes, "changes that help most: us, and as a multiple of what is chosen")
    problems = [line for line in lines.all if line.get("error") and "seconds" not in line and line["stage"] != "correct"]
    problems += [line for line in checks if not line.get("ok")]
    problems += [line for line in lines.all if line.get("skipped") or (line["stage"] == "steady" and not line["ok"])]
    if problems:
        rows.append(f"problems: {len(problems)}")
        rows += [f"  {line['stage']} {line['key']}: {_problem(line)}"[:150] for line in problems[:MOST_PROBLEMS]]
    return rows[:MOST_LINES]


def _problem(line: dict[str, Any]) -> str:
    if line["stage"] == "steady":
        return f"{100 * line['off']:.0f} % off when repeated: the run is measured again"
    return str(line.get("skipped") or line.get("error"))


def _faster(line: dict[str, Any]) -> float:
    return float(line["beside"] / line["seconds"])


def _products(lines: Sequence[dict[str, Any]], ceilings: dict[str, Any]) -> list[str]:
    """A row for each shape and number of rows: what fp16 takes, and each width's speedup over it and share of the floor."""
    widths = sorted({line["bits"][0] for line in lines})
    grouped: dict[tuple[int, int, int], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        grouped[line["rows"], *line["shape"]][line["bits"][0]] = line
    found = ["rows      out x in   fp16 us | speedup, share of the floor: " + " ".join(f"{bits:>5} bit " for bits in widths)]
    for (rows, outputs, inputs), each in sorted(grouped.items()):
        dense = statistics.median(line["beside"] for line in each.values())
        cells = [
            f"{_faster(each[bits]):5.2f} {floor(each[bits], ceilings) / each[bits]['seconds']:4.2f}" if bits in each else " " * 10
            for bits in widths
        ]
        found.append(f"{rows:4} {f'{outputs} x {inputs}':>14} {1e6 * dense:9.1f} | " + " ".join(cells))
    return found if lines else []


def _beside(lines: Sequence[dict[str, Any]], title: str) -> list[str]:
    found = []
    for line in lines:
        bits, shape = "+".join(map(str, line["bits"])), " x ".join(map(str, line["shape"]))
        what = f"{line['kernel']} {line['change']}, {bits} bits, {line['rows']} rows, {shape}"
        found.append(f"  {what}: {1e6 * line['seconds']:.1f}, {1 / _faster(line):.2f}")
    return [title, *found] if found else []
