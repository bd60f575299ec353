"""How long does one product take on this machine's CPU, by shape, width, rows and groups? Writes a latency table.

python benchmarks/latency_cpu.py [--name cpu] [--seconds 0.25] [--largest WEIGHTS] [--folder DIR]

The table, kernels/latency_tables/NAME.json, is what `bitplan plan --latency-ms X --device NAME` counts with. One thread; widths
of 1 to 8 bits by the compiled module, through the public `matmul` with fp32 activations; 32 bits by torch in fp32 and 16 bits
by torch in bf16. Weights are random. Each point is the median of the calls of `--seconds`, nine at least; the minima stand
beside the medians in benchmarks/results/latency-NAME.json. `--folder` takes both files elsewhere.

Consecutive calls take another copy of the weights, of as many copies as make 32 MB, but eight at most. So small matrices
come from a cache, as they would not between the other layers of a large model, and so may all where the last-level
cache is larger than 32 MB.

Constants are fitted (`latency_fit.py`) to all shapes but one, at which their error is stated. The rates they are shares of are
measured here: bytes a second of a sum over 256 MB, operations a second of an fp32 product, taken twice for 16 bits. Instructions
are not counted: issue_rate is 1e9, and gemv and gemm are nanoseconds a weight of the fitted shapes, at 1 and at 16 rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitplan.allocator.solve import versions
from bitplan.kernels.cpu import compiled
from bitplan.kernels.latency_fit import fit
from bitplan.kernels.latency_json import TABLES, load, to_json
from bitplan.kernels.layout import FieldPlanes
from bitplan.kernels.packing import FIELDS
from bitplan.kernels.product import matmul
from bitplan.kernels.roofline import Constants, DeviceModel, Point
from machine import describe

RESULTS = Path(__file__).parent / "results"
SHAPES = (
    (576, 576),
    (1536, 576),
    (576, 1536),
    (49152, 576),
    (2048, 2048),
    (4096, 4096),
    (11008, 4096),
    (4096, 11008),
)  # (out, in)
ROWS = (1, 16)
GROUPS = (64, 128)
COPIES, TOGETHER = 8, 32 << 20  # at most so many copies, of so many bytes in all
CALLS = 9
RATE_BYTES, RATE_SIDE = 256 << 20, 1536
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Timed:
    """One point, whose seconds are the median of `calls` calls, and their minimum."""

    point: Point
    minimum: float
    calls: int


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--name", default="cpu")
    arguments.add_argument("--seconds", type=float, default=0.25, help="of calls for each point")
    arguments.add_argument("--largest", type=int, default=1 << 30, metavar="WEIGHTS", help="leave larger matrices out")
    arguments.add_argument("--folder", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    reason = compiled.missing(torch.device("cpu"))
    if reason is not None:
        raise SystemExit(f"there is nothing to time: {reason}")
    shapes = [shape for shape in SHAPES if shape[0] * shape[1] <= options.largest]
    if len(shapes) < 2:
        raise SystemExit(f"--largest {options.largest} leaves {len(shapes)} of the shapes, and a fit takes two; raise it")
    load_average, began = round(os.getloadavg()[0], 2), time.perf_counter()
    timed = []
    for shape in shapes:
        for bits in (*range(1, 9), 16, 32):
            new = time_weights(shape, bits, options.seconds)
            timed += new
            shown = ", ".join(f"x{t.point.rows} g{t.point.group_size or '-'} {1e6 * t.point.seconds:.1f} us" for t in new)
            print(f"{time.perf_counter() - began:4.0f} s  {shape[0]} x {shape[1]}, {bits} bits: {shown}", flush=True)
    model = table(options.name, timed)
    fewer = f" --largest {options.largest}" if len(shapes) < len(SHAPES) else ""
    result = {
        "question": "how long does one product take on this machine's CPU",
        "command": f"python benchmarks/latency_cpu.py --name {options.name} --seconds {options.seconds:g}{fewer}",
        "date": model.date,
        "machine": describe(),
        "instruction_sets": compiled.instruction_sets(),
        "versions": versions(),
        "load_average": load_average,
        "seconds": round(time.perf_counter() - began, 1),
        "fit_error": model.fit_error,
        "constants": to_json(model)["constants"],
        "points": [
            {**asdict(t.point), "seconds": {"median": t.point.seconds, "minimum": t.minimum}, "calls": t.calls} for t in timed
        ],
    }
    path = (options.folder or TABLES) / f"{options.name}.json"
    path.write_text(as_text(to_json(model)))
    ((options.folder or RESULTS) / f"latency-{options.name}.json").write_text(as_text(result))
    print(
        f"{path.name}: {len(load(path).points)} points; the formula is {model.fit_error:.0%} off at a shape it was not fitted to"
    )


def time_weights(shape: tuple[int, int], bits: int, seconds: float) -> list[Timed]:
    """All points of one matrix in one width."""
    if bits in (16, 32):
        dtype, kernel = (torch.bfloat16, "torch bf16") if bits == 16 else (torch.float32, "torch fp32")
        size = shape[0] * shape[1] * dtype.itemsize
        dense: list[Call] = [partial(_dense, torch.randn(shape).to(dtype)) for _ in range(copies(size))]
        return [time_calls(Point(kernel, *shape, bits, rows, 0.0, None), dense, dtype, seconds) for rows in ROWS]
    found = []
    for group in GROUPS:
        planes = random_planes(shape, bits, group)
        packed: list[Call] = [_packed(planes if i == 0 else _copy(planes)) for i in range(copies(planes.stored_bytes))]
        kernel = f"c {compiled.instruction_sets()[0]}"
        for rows in ROWS:
            found.append(time_calls(Point(kernel, *shape, bits, rows, 0.0, group), packed, torch.float32, seconds))
    return found


def time_calls(point: Point, calls: Sequence[Call], dtype: torch.dtype, seconds: float) -> Timed:
    """`point` with its time: `calls` in turn, each a product with another copy of the weights."""
    x = torch.randn(point.rows, point.inputs).to(dtype)
    for call in calls:
        call(x)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < CALLS or time.perf_counter() < ends:
        call = calls[len(times) % len(calls)]
        began = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - began)
    return Timed(replace(point, seconds=rounded(statistics.median(times))), rounded(min(times)), len(times))


def copies(size: int) -> int:
    """Copies of weights of `size` bytes."""
    return min(COPIES, -(-TOGETHER // size))


def random_planes(shape: tuple[int, int], bits: int, group: int) -> FieldPlanes:
    """A matrix of random codes with fp16 scales and zero points; every word stands for some codes, so none is packed."""
    outputs, inputs = shape
    words = torch.randint(-(2**31), 2**31, (-(-inputs // 32), bits, outputs)).int()
    scales, zeros = (torch.rand(-(-inputs // group), outputs).half() for _ in range(2))
    return FieldPlanes(words, FIELDS[bits], inputs, scales / 100, zeros * 2**bits, group)


def table(name: str, timed: Sequence[Timed]) -> DeviceModel:
    """The device of these points, with fitted constants."""
    points = [t.point for t in timed]
    shapes = sorted({point.shape for point in points}, key=lambda shape: (shape[0] * shape[1], shape))
    apart = shapes[len(shapes) // 2]
    seen = [point for point in points if point.shape != apart]
    bandwidth, operations = rates()
    start = Constants(
        bandwidth=bandwidth,
        tensor_rate=2 * operations,
        issue_rate=1e9,
        eta_q=1.0,
        eta_i=1.0,
        eta_tc=1.0,
        eta_dense=1.0,
        eta_dense_tc=1.0,
        t0=0.0,
        block_rows=max(ROWS),
        gemv=nanoseconds_a_weight(seen, ROWS[0]),
        gemm=nanoseconds_a_weight(seen, ROWS[1]),
    )
    here = describe()
    machine = f"{here['processor']}, 1 thread of {here['cores']} cores, {compiled.instruction_sets()[0]}, {here['system']}"
    below = statistics.median(1 - t.minimum / t.point.seconds for t in timed)
    note = (
        f"Measured by benchmarks/latency_cpu.py: medians of repeated calls, of which the fastest is {below:.1%} below the median "
        "(median over the points); weights rotated over copies of 32 MB in all, eight at most. bandwidth and tensor_rate are "
        "rates measured there; issue_rate is 1e9, and gemv and gemm are nanoseconds a weight of the fitted shapes, not counts of "
        f"instructions; fit_error is at {apart[0]} x {apart[1]}."
    )
    date = datetime.now(UTC).date().isoformat()
    made = fit(DeviceModel(name, start, None, date, machine, versions(), note), points, apart)
    constants: dict[str, Any] = {
        key: rounded(value) if isinstance(value, float) else value for key, value in vars(made.constants).items()
    }
    assert made.fit_error is not None
    return replace(made, constants=Constants(**constants), fit_error=rounded(made.fit_error))


def nanoseconds_a_weight(points: Sequence[Point], rows: int) -> tuple[float, ...]:
    """For 1 to 8 bits: 1e9 times the seconds of a product of so many rows over its weights, the geometric mean of the points."""
    found = []
    for bits in range(1, 9):
        chosen = [point for point in points if (point.bits, point.rows) == (bits, rows)]
        found.append(rounded(1e9 * statistics.geometric_mean(p.seconds / (p.outputs * p.inputs) for p in chosen)))
    return tuple(found)


def rates() -> tuple[float, float]:
    """Bytes a second that one thread reads, and floating-point operations a second of an fp32 product: each the best of some."""
    numbers, square = torch.ones(RATE_BYTES // 4), torch.randn(RATE_SIDE, RATE_SIDE)
    reading, multiplying = ([_clock(work) for _ in range(CALLS)] for work in (numbers.sum, lambda: square @ square))
    return rounded(RATE_BYTES / min(reading)), rounded(2 * RATE_SIDE**3 / min(multiplying))


def rounded(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")


def as_text(document: dict[str, Any]) -> str:
    """JSON with a line for each part and each point."""
    parts = []
    for name, value in document.items():
        lines = ",\n  ".join(json.dumps(point) for point in value) if name == "points" else ""
        parts.append(f" {json.dumps(name)}: " + (f"[\n  {lines}\n ]" if lines else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _dense(weight: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def _packed(planes: FieldPlanes) -> Call:
    return lambda x: matmul(x, planes, backend="c")


def _copy(planes: FieldPlanes) -> FieldPlanes:
    assert planes.zeros is not None
    return replace(planes, words=planes.words.clone(), scales=planes.scales.clone(), zeros=planes.zeros.clone())


if __name__ == "__main__":
    main()
