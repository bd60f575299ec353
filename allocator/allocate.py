"""allocate: a model and a budget in, a certified plan out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..sensitivity.progress import Progress, silent
from .budget import Budget
from .home import home_folder
from .plan import Plan
from .profile import inspect_model, profile_model
from .request import DEFAULT_TOKENS, PlanRequest, ProfileRequest
from .solve import check_budget, needs_profile, plan_from_profile


def allocate(
    model: str,
    budget: str | int | Budget,
    *,
    target: str = "native",
    metric: str = "kl_fisher",
    solver: str = "best",
    formats: Iterable[str] | None = None,
    pins: Mapping[str, str] | None = None,
    calibration: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    rounding: str = "gptq",
    until_stable: str | None = None,
    stream: bool = False,
    sibling: str | None = None,
    device: str = "auto",
    latency_ms: float | None = None,
    latency_device: str | None = None,
    home: Path | str | None = None,
    progress: Progress = silent,
) -> Plan:
    """The bit plan of `model` within `budget` (see `Budget`), loss as measured by `metric`.

    `formats` is the palette, the model's own dtype always among it; `pins` maps regular expressions over unit names to the
    format they must keep. `calibration` is a text file, a folder of texts or of images; `tokens` of it are used for rounding
    and as many others for estimating, with `until_stable`, a budget, no more of them than it takes for
    the plan for that budget to stop changing. With
    `stream`, and where memory is short, one block of the model is in memory at a time. `sibling` names the stored profile of
    a smaller model of the family to plan by before anything is measured. `device` is where torch computes: `auto` takes the
    machine's accelerator if it has one. `latency_ms` is a second limit: milliseconds of one decoding step at batch 1 on
    `latency_device` (h100 unless given), as its latency table has them (`timing.py`). What has been measured before is found
    under `home` (BITPLAN_HOME) and not measured again.

    Raises UsageError or UnknownName for a request that cannot be meant, ModelError, and Infeasible, before anything is
    measured, with the range of budgets that can be met, or the smallest latency.
    """
    named = None if formats is None else tuple(formats)
    profile = ProfileRequest(model, metric, named, calibration, tokens, seed, rounding, until_stable, stream, sibling, device)
    text = budget.text if isinstance(budget, Budget) else str(budget)
    request = PlanRequest(profile, text, target, solver, tuple((pins or {}).items()), latency_ms, latency_device)
    return allocate_request(request, home=home, progress=progress)


def allocate_request(request: PlanRequest, *, home: Path | str | None = None, progress: Progress = silent) -> Plan:
    """The same for a request in one value."""
    request.check()
    request.profile.check_device()
    folder = home_folder(home)
    inventory = inspect_model(request.profile.model, home=folder, progress=progress, stream=request.profile.stream)
    check_budget(inventory, request)
    report = profile_model(request.measured, home=folder, progress=progress) if needs_profile(inventory, request) else None
    progress("solve", 0, 1)
    plan = plan_from_profile(inventory, report, request)
    progress("solve", 1, 1)
    return plan
