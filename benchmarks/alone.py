"""One solver on one problem in a process of its own: one core, one thread, a clock and a cap of memory, and what it took.

The clock runs for the solver only: imports, the tables and one small problem to warm up come before, and time and memory of
the imports are told apart. Memory is the sum over the process and those that it starts (CBC runs in one), read from /proc
twenty times a second, or the peak that the kernel keeps for the process itself, whichever is more; so it is Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
OURS = ("best", "hull", "frontier", "lagrangian")
RIVALS = ("model_optimizer", "cbc_hawq", "scipy_milp", "cpsat", "autoround_dp")
WARM_ITEMS = 30
OWN_CLOCK = ("model_optimizer", "cbc_hawq", "scipy_milp", "cpsat")  # told the limit; the others are stopped by an alarm
OVERRUN, LATE = 1.25, 5.0  # how long those may take: times the limit, plus seconds; they look at their clock between steps only
GRACE = 60.0  # seconds for imports, tables and warming up, before a process that hears no alarm is ended
SAMPLE = 0.05  # seconds


@dataclass(frozen=True)
class Job:
    """`solver` on the problem that `family` to `table` state (`workloads.py`), within `time_limit` seconds and `memory` bytes."""

    solver: str
    family: str
    items: int
    options: int
    resources: int
    budget: int
    seed: int
    table: str | None
    time_limit: float
    memory: int


def run(job: Job) -> dict[str, Any]:
    """What `_work` tells, with the peak of all processes and what the solver added to it.

    Where the process was ended from outside, `stopped` says why, and there is no choice.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "told.json"
        command = [sys.executable, "-c", "import alone; alone.main()", json.dumps(asdict(job)), str(target)]
        with open(Path(folder) / "errors", "w+") as errors:
            process = subprocess.Popen(
                command,
                cwd=Path(__file__).parent,
                env={**os.environ, **ONE_THREAD, "TMPDIR": folder},
                stdout=subprocess.DEVNULL,  # HiGHS prints whatever it is told
                stderr=errors,
                start_new_session=True,
            )
            peak, deadline = 0, time.monotonic() + OVERRUN * job.time_limit + LATE + GRACE
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    peak = max(peak, _resident(process.pid))
                    time.sleep(SAMPLE)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own: this ends what it started, too
                process.wait()
            late = time.monotonic() >= deadline
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [""])[-1]
        if target.exists():
            told: dict[str, Any] = json.loads(target.read_text())
            told["peak_bytes"] = max(peak, told["peak_bytes"])
            told["added_bytes"] = told["peak_bytes"] - told.pop("before_bytes")
            return told
        stopped = "time" if late else "memory" if "alloc" in last or "Memory" in last else f"error: {last}"
        return {"stopped": stopped, "seconds": job.time_limit if late else None, "peak_bytes": peak}


def main() -> None:
    """In the process: do the job of the first argument, write what it took to the file of the second."""
    job, target = Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    target.with_suffix(".part").write_text(json.dumps(_work(job)))
    target.with_suffix(".part").rename(target)


def _work(job: Job) -> dict[str, Any]:
    """Seconds, bytes, and what was found; `before_bytes` are those of imports, tables and warming up."""
    started = time.perf_counter()
    from bitplan.solvers import recompute, scaled
    from workloads import Workload

    imported = time.perf_counter() - started
    family = "groups" if job.options == 6 else job.family
    small = Workload(family, min(WARM_ITEMS, job.items), job.options, job.resources) if family != "projections" else None
    if small is not None:
        _solve(job, small.problem(0, job.seed))
    problem = Workload(job.family, job.items, job.options, job.resources).problem(
        job.budget, job.seed, None if job.table is None else Path(job.table)
    )
    if small is None:
        few = slice(0, WARM_ITEMS)
        _solve(
            job, type(problem)(problem.loss[few], problem.cost[:, few], problem.cost[:, few, 5].sum(axis=1), problem.allowed[few])
        )
    before = _status("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    resource.setrlimit(resource.RLIMIT_AS, (job.memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGALRM, _alarm)
    patience = OVERRUN * job.time_limit + LATE if job.solver in OWN_CLOCK else job.time_limit
    signal.setitimer(signal.ITIMER_REAL, patience)
    started = time.perf_counter()
    try:
        told = _solve(job, problem)
    except (TimeoutError, MemoryError) as stop:
        told = {"stopped": "time" if isinstance(stop, TimeoutError) else "memory"}
    seconds = time.perf_counter() - started
    signal.setitimer(signal.ITIMER_REAL, 0)
    peak = _status("VmHWM")
    choice = told.pop("choice", None)
    if choice is not None:
        loss, _ = recompute(problem, choice)
        exact = int(scaled(problem).loss[range(problem.items), choice].sum())
        told |= {"loss": loss, "scaled_loss": exact, "broken": "; ".join(problem.rows.broken(choice))}
    measured = {"seconds": seconds, "import_seconds": imported, "peak_bytes": peak, "before_bytes": before}
    return {**measured, **told}


def _solve(job: Job, problem: Any) -> dict[str, Any]:
    """The choice and what the solver says of it; `seconds` where it keeps a better clock than the caller."""
    import rivals
    from bitplan.solvers import SOLVERS, frontier

    if job.solver == "frontier":
        return {"vertices": len(frontier(problem).budgets)}
    if job.solver in OURS:
        solution = SOLVERS[job.solver](problem)
        certificate = solution.certificate
        gap = 0.0 if certificate is None or not solution.loss else float(certificate.gap / certificate.loss_scale) / solution.loss
        binding = certificate is not None and all(multiplier > 0 for multiplier in certificate.multipliers)
        told = {"word": solution.status.name, "proof": solution.proof, "gap": gap, "binding": binding}
        return {**told, "optimal": solution.status.name == "OPTIMAL", "choice": solution.choice}
    if job.solver == "autoround_dp":
        claim = rivals.autoround_dp(problem)
    else:
        # The three tries of Model Optimizer share the limit, so that it has an answer when the time is up.
        limit = job.time_limit / (len(rivals.RETRIES) if job.solver == "model_optimizer" else 1)
        claim = getattr(rivals, job.solver)(problem, time_limit=limit)
    return {"word": claim.word, "optimal": claim.optimal, "choice": claim.choice, "seconds": claim.seconds}


def _alarm(signal_number: int, frame: object) -> None:
    raise TimeoutError


def _status(name: str, process: int | str = "self") -> int:
    """A quantity in bytes from /proc; zero for a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _resident(process: int) -> int:
    """Bytes in memory of a process and all that it started."""
    total = _status("VmRSS", process)
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            total += _resident(int(child))
    return total
