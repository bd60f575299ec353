"""Sweeps: many plans as one job, waited for with a progress bar, taken up again wherever they were left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypedDict, Unpack

from ..schema import JobView, ListView, SweepBody, SweepView
from .asking import ask, body, document, id_of, page, read, shaped
from .jobs import Watch, job, result
from .sweep import Sweep
from .talk import Talk


class Sweeping(TypedDict, total=False):
    """Options of a sweep, named as in the API."""

    solver: str
    formats: Sequence[str] | None
    calibration: str | None
    tokens: int
    seed: int
    rounding: str
    stream: bool
    device: str
    verify: bool


def submit_sweep(
    models: Sequence[str],
    budgets: Sequence[str],
    *,
    targets: Sequence[str] = ("native",),
    metrics: Sequence[str] = ("kl_fisher",),
    fresh: bool = False,
    **options: Unpack[Sweeping],
) -> Talk[SweepView]:
    """Ask for a sweep and do not wait: the one with the same arguments that is under way or has ended well, else (and
    always with `fresh`, once it has ended) a new one."""
    fields = {"models": models, "budgets": budgets, "targets": targets, "metrics": metrics, **options}
    reply = yield from ask("POST", "/v1/sweeps", body(SweepBody, fields), {"fresh": "true" if fresh else None})
    return shaped(SweepView, document(reply))


def sweep(
    models: Sequence[str],
    budgets: Sequence[str],
    targets: Sequence[str] = ("native",),
    metrics: Sequence[str] = ("kl_fisher",),
    *,
    fresh: bool = False,
    progress: bool = True,
    watch: Watch | None = None,
    **options: Unpack[Sweeping],
) -> Talk[Sweep]:
    """A plan for every model, metric, target and budget, with a progress bar on standard error. Called again with the same
    arguments, after either side went away, it goes on with the same sweep, or returns it when it has ended."""
    view = yield from submit_sweep(models, budgets, targets=targets, metrics=metrics, fresh=fresh, **options)
    with ExitStack() as stack:
        tell = None
        if progress and not view.finished:
            from ..bars import progress_bars

            tell = stack.enter_context(progress_bars())

        def see(state: JobView) -> None:
            if tell is not None and state.progress is not None:
                tell(state.progress.stage, state.progress.done, state.progress.total)
            if watch is not None:
                watch(state)

        yield from result((yield from job(view.job_id)), see)
    return (yield from get_sweep(view.id))


def get_sweep(sweep: SweepView | str) -> Talk[Sweep]:
    """A sweep as far as it has come."""
    return Sweep.of(shaped(SweepView, (yield from read(f"/v1/sweeps/{id_of(sweep)}", patient=True))))


def sweeps(*, cursor: str | None = None, limit: int = 50) -> Talk[ListView[SweepView]]:
    """One page of sweeps, newest first."""
    return page(SweepView, "/v1/sweeps", {"cursor": cursor, "limit": limit})
