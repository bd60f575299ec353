"""Clocks for `kernels.py`, and the file that every number goes into as soon as it is there."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
import triton

import kernel_checkout  # noqa: F401 (first)

LAUNCHES, REPLAYS, WARM_UPS = 20, 5, 2
ROTATED = 200_000_000  # bytes of weights that take turns: four times what the cache of these GPUs holds
STEADY = 0.05  # what the first measurement of a run may differ by when it is repeated at the end
HEATING = 2.0  # s
TIMED = ("ceilings", "time", "mixed", "changes")
Call = Callable[[], object]


class Clock(Protocol):
    device: torch.device
    name: str
    rotated: int

    def seconds(self, sides: Sequence[Sequence[Call]]) -> list[list[float]]:
        """For each side, the seconds of one of its calls, in each of REPLAYS rounds; sides take turns: A, B, A, B."""

    def ceilings(self) -> dict[str, float]:
        """`bandwidth` bytes / s, `tensor_rate` floating-point operations / s, `t0` s, `issue_rate` lane instructions / s."""


class GraphClock:
    """Calls captured in a CUDA graph, so that Python's own time is not in it; between events on the device."""

    rotated = ROTATED

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.name = torch.cuda.get_device_name()
        heat = torch.randn(8192, 8192, device=self.device).to(torch.bfloat16)
        end = time.monotonic() + HEATING
        while time.monotonic() < end:  # clocks rise first
            heat @ heat
            torch.cuda.synchronize()

    def seconds(self, sides: Sequence[Sequence[Call]]) -> list[list[float]]:
        graphs = [self._captured(calls) for calls in sides]
        found: list[list[float]] = [[] for _ in sides]
        for round_ in range(WARM_UPS + REPLAYS):
            for graph, calls, each in zip(graphs, sides, found, strict=True):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                if round_ >= WARM_UPS:
                    each.append(start.elapsed_time(end) / 1e3 / len(calls))
        return found

    def _captured(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, and takes what memory it needs, before the capture
            calls[0]()
            calls[-1]()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph

    def ceilings(self) -> dict[str, float]:
        bytes_, size = 2**31, 8192
        pair = [torch.zeros(bytes_, dtype=torch.uint8, device=self.device) for _ in range(2)]
        copied = min(self.seconds([[lambda: pair[0].copy_(pair[1])] * 4])[0])
        factors = [torch.randn(size, size, device=self.device).to(torch.bfloat16) for _ in range(2)]
        multiplied = min(self.seconds([[lambda: factors[0] @ factors[1]] * 4])[0])
        single = torch.zeros(1, device=self.device)
        empty = statistics.median(self.seconds([[lambda: single.zero_()] * 1000])[0])
        found = {"bandwidth": 2 * bytes_ / copied, "tensor_rate": 2 * size**3 / multiplied, "t0": empty}
        properties = torch.cuda.get_device_properties(self.device)
        kilohertz = getattr(properties, "clock_rate", None)
        if kilohertz:  # four schedulers of 32 lanes in each multiprocessor
            found["issue_rate"] = properties.multi_processor_count * 4 * 32 * 1e3 * kilohertz
        return found


class PretendClock:
    """For trying the script out without a GPU: calls each side once, and what it returns are no times of anything."""

    device = torch.device("cpu")
    name = "dry-run"
    rotated = 1

    def __init__(self) -> None:
        self.told = 0

    def seconds(self, sides: Sequence[Sequence[Call]]) -> list[list[float]]:
        found = []
        for calls in sides:
            calls[0]()
            self.told += 1
            found.append([1e-6 * (self.told % 7 + 1)] * REPLAYS)
        return found

    def ceilings(self) -> dict[str, float]:
        return {"bandwidth": 1e12, "tensor_rate": 1e14, "t0": 1e-6, "issue_rate": 1e13}


def short(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` is h100; a name without a number is itself."""
    words = name.lower().replace("-", " ").split()
    return next((word for word in words if any(sign.isdigit() for sign in word)), "-".join(words))


class Lines:
    """JSON lines in one file: read, and written one by one. A line that a kill cut short is removed."""

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        if kept != whole:
            path.write_bytes(kept)
        self.all: list[dict[str, Any]] = [json.loads(line) for line in kept.splitlines()]

    def add(self, stage: str, key: str, **rest: Any) -> None:
        line = {"stage": stage, "key": key, "run": self.run, **rest}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.all.append(line)

    def of(self, stage: str) -> dict[str, dict[str, Any]]:
        """The last line of each key; of the stages with times, none from a run that was not steady."""
        unsteady = {line["run"] for line in self.all if line["stage"] == "steady" and not line["ok"] and stage in TIMED}
        return {line["key"]: line for line in self.all if line["stage"] == stage and line["run"] not in unsteady}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Deadline:
    """A stage ends before its own minutes or the whole run's are over."""

    def __init__(self, minutes: float, stage_minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.stage_minutes = stage_minutes
        self.stage_end = self.end

    def begin(self) -> None:
        self.stage_end = min(self.end, time.monotonic() + 60 * self.stage_minutes)

    def left(self) -> float:
        """Seconds."""
        return max(self.stage_end - time.monotonic(), 0)

    def over(self) -> bool:
        return not self.left()
