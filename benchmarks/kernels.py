"""Are products straight from packed words right on an NVIDIA GPU, and how fast? One command, for a machine that has one.

python benchmarks/kernels.py [--out DIR] [--stages NAME ...] [--minutes N] [--quick] [--dry-run]

Needs torch, triton and NumPy, no network, and no installation: a checkout of any name will do. Stages, each under 8 minutes:

    ceilings   copied bytes a second, bf16 operations a second of torch's product of 8192 x 8192, the start of an empty kernel
    compile    every case below once, in a pool of processes, so that no measuring waits for a compiler
    correct    every kernel and width against float64, outputs poisoned with NaN; what fails is reported and never timed
    time       shapes of large networks, all widths, 1 to 256 rows, groups of 128: beside torch's fp16 product, in turns
    mixed      groups and experts of mixed widths beside one width of the same mean, in turns
    changes    other tiles, warps, splits and kernels beside the ones that are chosen, in turns
    fit        the constants of kernels/latency_fit.py, into latency_DEVICE.json, for kernels/latency_tables/DEVICE.json

Times are per product: graphs of 20 launches or more over at least 200 MB of different weights, five replays, median and least.
Every number is written as it is measured; the same command goes on where it was stopped. A run whose first measurement, repeated
at its end, is over 5 % off counts for nothing and is measured again. --quick: two shapes, six widths, 1 and 16 rows.
--dry-run: tiny cases in Triton's interpreter and a pretended clock, to see that the script works; no number means anything.
Exit status: 0 all is there, 1 something is wrong, 2 no GPU, 3 the minutes are over: run it again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import kernel_checkout
from bitplan.kernels.triton.dequantize import dequantized
from kernel_cases import (
    Case,
    activations,
    called,
    changed,
    changed_cases,
    choice_of,
    correctness_cases,
    exact,
    mixed_cases,
    time_cases,
    weight_of,
)
from kernel_clock import LAUNCHES, STEADY, Call, Clock, Deadline, GraphClock, Lines, PretendClock, now, short, versions
from kernel_report import fit, predicted, table

STAGES = ("ceilings", "compile", "correct", "time", "mixed", "changes", "fit")
STAGE_MINUTES = 7.5
PROCESSES = 12
REPEATS = 3  # at the end of a run, of its first measurement, the closest of which counts
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.2e-2, "float32": 3e-6}


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """What torch.empty allocates is NaN, or a conspicuous whole number."""
    empty = torch.empty

    def filled(*shape: Any, **rest: Any) -> torch.Tensor:
        made = empty(*shape, **rest)
        return made.fill_(float("nan") if made.is_floating_point() else 0x7F)

    torch.empty = filled
    try:
        yield
    finally:
        torch.empty = empty


def in_turns(weights: list[Any], launches: int, call: Callable[[Any], object]) -> list[Call]:
    """Calls with one weight after another, so that none is in a cache from the call before."""
    return [functools.partial(call, weights[index % len(weights)]) for index in range(launches)]


def kernel_of(case: Case, device: torch.device) -> str:
    """Which one computes it: mixtures have kernels of their own."""
    return "experts" if case.kind == "experts" else ("group " * (case.kind == "groups")) + choice_of(case, device).kernel


def _compile(case: Case) -> tuple[str, str]:
    """(key, error) of one call; in a process of its own pool. Compiled kernels are kept on disk, where all find them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        x, chosen = activations(case, device)
        choice = changed(case, choice_of(case, device), device) if case.stage == "changes" else None
        called(case, x, chosen, weight_of(case, device), choice)
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception as error:
        return case.key, f"{type(error).__name__}: {error}"[:300]
    return case.key, ""


class Bench:
    def __init__(self, clock: Clock, lines: Lines, deadline: Deadline, quick: bool) -> None:
        self.clock, self.lines, self.deadline, self.quick = clock, lines, deadline, quick
        self.tiny = isinstance(clock, PretendClock)
        self.device = clock.device
        self.first: Case | None = None

    def cases(self, stage: str) -> list[Case]:
        if stage == "correct":
            return correctness_cases(self.tiny)
        if stage == "time":
            return time_cases(self.quick, self.tiny)
        if stage == "mixed":
            return mixed_cases(self.quick, self.tiny)
        return changed_cases(self.quick, self.tiny, self.device)

    def run(self, stage: str) -> bool:
        """Whether all of the stage is there."""
        self.deadline.begin()
        if stage == "ceilings":
            if not self.lines.of(stage):
                self.lines.add(stage, stage, **self.clock.ceilings())
            return True
        if stage == "fit":
            return fit(self.lines, self.clock.name)
        cases = [case for each in (STAGES[2:6] if stage == "compile" else [stage]) for case in self.cases(each)]
        done = self.lines.of(stage)
        left = [case for case in cases if case.key not in done]
        if stage == "compile":
            self.compile(left)
        else:
            for case in left:
                if self.deadline.over():
                    break
                self.one(stage, case)
        done = self.lines.of(stage)
        there = sum(case.key in done for case in cases)
        print(f"{stage}: {there} of {len(cases)}", flush=True)
        return there == len(cases)

    def compile(self, cases: list[Case]) -> None:
        if self.tiny or not cases:
            for case in cases[:1]:
                _compile(case)
            for case in cases:
                self.lines.add("compile", case.key, error="")
            return
        pool = ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn"))
        with contextlib.suppress(TimeoutError, BrokenProcessPool):  # what is not compiled here is compiled when it is called
            for done in as_completed([pool.submit(_compile, case) for case in cases], timeout=self.deadline.left()):
                key, error = done.result()
                self.lines.add("compile", key, error=error)
        pool.shutdown(wait=False, cancel_futures=True)

    def one(self, stage: str, case: Case) -> None:
        torch.manual_seed(0)
        try:
            if stage == "correct":
                self.lines.add(stage, case.key, **self.checked(case))
            elif failed := self.failed(case):
                self.lines.add(stage, case.key, skipped=f"{failed} is wrong")
            else:
                self.lines.add(stage, case.key, **self.timed(case))
                self.first = self.first or case
        except Exception as error:
            wrong: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"[:300]}
            if stage == "correct":
                wrong |= {"kernel": kernel_of(case, self.device), "bits": case.bits, "dtype": case.dtype, "ok": False}
            self.lines.add(stage, case.key, **wrong)
            if "CUDA error" in str(error) or "illegal" in str(error):
                raise  # nothing on the device can be trusted from here on; the next run goes on after this case
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def checked(self, case: Case) -> dict[str, Any]:
        x, chosen = activations(case, self.device)
        weight = weight_of(case, self.device)
        with poisoned():
            y = called(case, x, chosen, weight)
        expected = exact(x, chosen, weight)
        error = float((y.double() - expected).norm() / expected.norm())
        ok = error < TOLERANCE[case.dtype]
        if not ok:
            print(f"WRONG {case.key}: {error:.2g}", flush=True)
        kernel = kernel_of(case, self.device)
        return {"kernel": kernel, "bits": case.bits, "dtype": case.dtype, "error": None if math.isnan(error) else error, "ok": ok}

    def failed(self, case: Case) -> str:
        """The kernel, where it was wrong in one of these widths and this dtype."""
        kernel = kernel_of(case, self.device)
        wrong = [
            line
            for line in self.lines.of("correct").values()
            if not line["ok"] and (line["kernel"], line["dtype"]) == (kernel, case.dtype) and set(line["bits"]) & set(case.bits)
        ]
        return kernel if wrong else ""

    def timed(self, case: Case) -> dict[str, Any]:
        x, chosen = activations(case, self.device)
        choice = choice_of(case, self.device)
        other = changed(case, choice, self.device) if case.stage == "changes" else None
        ours: list[Any] = [weight_of(case, self.device) for _ in range(-(-self.clock.rotated // case.bytes))]
        launches = 1 if self.tiny else max(LAUNCHES, len(ours))
        if case.kind == "plain":  # in this very size and, for a change, on a tile that no other stage has checked
            expected = x.float() @ dequantized(ours[0], torch.float32)
            error = float((called(case, x, chosen, ours[0], other).float() - expected).norm() / expected.norm())
            if not error < TOLERANCE[case.dtype]:
                raise ArithmeticError(f"wrong by {error:.2g}")
            del expected
        if case.stage == "time":
            theirs = in_turns(self.dense(case), launches, lambda w: x @ w.T)
        elif case.stage == "mixed":
            single = replace(case, bits=(round(statistics.mean(case.bits)),) * len(case.bits))
            plain: list[Any] = [weight_of(single, self.device) for _ in ours]
            theirs = in_turns(plain, launches, lambda w: called(single, x, chosen, w))
        else:
            theirs = in_turns(ours, launches, lambda w: called(replace(case, change=""), x, chosen, w, choice))
        mine = in_turns(ours, launches, lambda w: called(case, x, chosen, w, other))
        found, beside = self.clock.seconds([mine, theirs])
        return {
            "kernel": kernel_of(case, self.device),
            "change": case.change,
            "bits": case.bits,
            "shape": (case.outputs, case.inputs),
            "rows": case.rows,
            "group": case.group,
            "seconds": statistics.median(found),
            "least": min(found),
            "each": found,
            "beside": statistics.median(beside),
            "beside_least": min(beside),
            "beside_each": beside,
            "bytes": case.bytes,
            "launches": launches,
            "predicted": predicted(self.clock.name, case) if case.kind == "plain" else None,
        }

    def dense(self, case: Case) -> list[torch.Tensor]:
        copies = -(-self.clock.rotated // (2 * case.outputs * case.inputs))
        shape = (case.outputs, case.inputs)
        return [torch.randn(shape, dtype=torch.float16, device=self.device) for _ in range(copies)]

    def steady(self) -> bool:
        """Measure the first case of this run again; the run counts only where that gives the same."""
        if self.first is None:
            return True
        before = self.lines.of(self.first.stage)[self.first.key]["seconds"]
        tries = [self.timed(self.first)["seconds"] / before - 1 for _ in range(1 if self.tiny else REPEATS)]
        off = min(tries, key=abs)
        ok = self.tiny or abs(off) <= STEADY
        self.lines.add("steady", self.first.key, off=off, tries=tries, ok=ok)
        return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the lines; by default benchmarks/results, for a dry run a new one")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured. --dry-run tries the script out.", file=sys.stderr)
        return 2
    clock: Clock = PretendClock() if given.dry_run else GraphClock()
    out = given.out or (Path(tempfile.mkdtemp()) if given.dry_run else Path(__file__).parent / "results")
    lines = Lines(out / f"kernels-{short(clock.name)}.jsonl", now())
    memory = torch.cuda.mem_get_info()[0] if clock.device.type == "cuda" else None
    lines.add("run", lines.run, device=clock.name, free_bytes=memory, versions=versions())
    print(f"{clock.name}, {versions()}, into {lines.path}", flush=True)
    bench = Bench(clock, lines, Deadline(given.minutes, STAGE_MINUTES), given.quick)
    complete = [bench.run(stage) for stage in given.stages if stage != "fit"]
    steady = bench.steady()
    if "fit" in given.stages:
        bench.run("fit")
    print("\n".join(table(lines, clock.name)[:60]))
    if any(line["ok"] is False for line in lines.of("correct").values() if "ok" in line) or not steady:
        return 1
    return 0 if all(complete) else 3


if __name__ == "__main__":
    assert kernel_checkout.ROOT.is_dir()
    sys.exit(main())
