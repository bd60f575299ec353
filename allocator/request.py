"""Requests: what is asked of a profile and of a plan, checked at the door, and the ids that follow from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..kernels.formats import FORMATS
from ..kernels.latency_json import devices
from ..sensitivity import METRICS
from ..sensitivity.units import Inventory
from ..solvers import SOLVERS as EVERY_SOLVER
from .budget import Budget
from .errors import UnknownName, UsageError
from .pins import check_pin
from .roots import check_spelling
from .targets import TARGETS

DEFAULT_FORMATS = tuple(f"int{bits}-g64-asym" for bits in (2, 3, 4, 5, 6, 8))
DEFAULT_TOKENS = 4096
PROFILE_VERSION = 2  # raised when what a metric means changes: old profiles are then measured anew
ROUNDINGS = ("gptq", "nearest")

# A plan is a problem of limits in bytes and time: solvers of balances, and of costs coarse enough for a table, have no say in it.
SOLVERS = {name: solve for name, solve in EVERY_SOLVER.items() if name not in ("pairing", "segment_dp")}
ONE_LIMIT = ("core", "hull", "closed_form", "dp_error")  # of these, the ones that take no second limit
LATENCY_DEVICE = "h100"
LONGEST = 1e9  # milliseconds: as nanoseconds they stay within what a table of integers holds


@dataclass(frozen=True)
class ProfileRequest:
    """What a profile is measured with. `formats` None means the default palette; each model's own dtype is always part.
    `until_stable` names a budget: calibration stops, before `tokens` are used up, when the plan for it has stopped changing.
    `sibling` is the id of a smaller model's stored profile that stands in for measuring. `stream` keeps one block of the
    model in memory at a time; no number depends on it. `device` is where torch computes (`device.py`); devices differ in the
    last digits only, and a profile is the same whichever it was measured on."""

    model: str
    metric: str = "kl_fisher"
    formats: tuple[str, ...] | None = None
    calibration: str | None = None
    tokens: int = DEFAULT_TOKENS
    seed: int = 0
    rounding: str = "gptq"
    until_stable: str | None = None
    stream: bool = False
    sibling: str | None = None
    device: str = "auto"

    def check(self) -> None:
        """Raises UnknownName or UsageError before anything is loaded."""
        _known("metric", self.metric, METRICS)
        _known("rounding", self.rounding, ROUNDINGS)
        for name in self.formats or ():
            _known("format", name, FORMATS)
        if self.formats is not None and not self.formats:
            raise UsageError("the list of formats is empty; name at least one, or leave it out for the default")
        if self.stream and not METRICS[self.metric].streams:
            able = ", ".join(name for name, metric in METRICS.items() if metric.streams)
            raise UsageError(
                f"metric {self.metric!r} needs the whole model in memory; leave --stream out, or take one of: {able}"
            )
        if self.until_stable is not None:
            Budget.parse(self.until_stable)
            if self.sibling is not None:
                raise UsageError("--sibling measures nothing, so --until-stable has nothing to stop; leave one of them out")
            if self.stream:
                raise UsageError("--until-stable goes batch by batch and --stream block by block; leave one of them out")
            if not METRICS[self.metric].streams:
                raise UsageError(
                    f"metric {self.metric!r} does not add up batch by batch; leave --until-stable out, or take kl_fisher"
                )
        if self.tokens < 64:
            raise UsageError(f"{self.tokens} calibration tokens are too few; ask for at least 64")
        if self.calibration is not None:
            check_spelling("calibration source", self.calibration, UsageError)
            source = Path(self.calibration)
            try:
                if not source.exists():
                    raise UsageError(
                        f"calibration source {source} does not exist; give a text file, or a folder of texts or images"
                    )
                if source.is_file() and not _beginning(source).strip():
                    raise UsageError(f"calibration source {source} is empty; give a file with text in it")
            except OSError as error:
                raise UsageError(f"calibration source {source} cannot be read ({error.strerror}); give another") from error

    def check_device(self) -> None:
        """Raises UsageError for a device that torch does not have here. Apart from `check`, as a plan from a stored profile
        needs no device; torch is loaded only to look for one that is named."""
        if self.device not in ("auto", "cpu"):
            from .device import choose_device

            choose_device(self.device)

    def palette(self, inventory: Inventory) -> tuple[str, ...]:
        """The formats of the profile: the asked ones and the model's own dtypes, in order of width."""
        names = inventory.natives | set(self.formats or DEFAULT_FORMATS)
        return tuple(name for name in _by_width() if name in names)

    def profile_id(self, inventory: Inventory) -> str:
        """SHA-256 of everything that the profile's numbers follow from."""
        key = [
            PROFILE_VERSION,
            inventory.fingerprint,
            self.metric,
            self.palette(inventory),
            calibration_digest(self.calibration),
            self.tokens,
            self.seed,
            self.rounding,
            *([] if self.until_stable is None else [self.until_stable]),
            *([] if self.sibling is None else ["sibling", self.sibling]),
        ]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()


@dataclass(frozen=True)
class PlanRequest:
    """What is asked of a plan. `pins` are (regular expression, format): units whose whole name matches keep that format;
    the format `native` stands for a unit's own dtype. `latency_ms` limits one decoding step at batch 1 on `latency_device`, the
    name of a latency table (not a device of torch), h100 unless given."""

    profile: ProfileRequest
    budget: str
    target: str = "native"
    solver: str = "best"
    pins: tuple[tuple[str, str], ...] = ()
    latency_ms: float | None = None
    latency_device: str | None = None

    @property
    def timed_on(self) -> str:
        """The device of the latency limit."""
        return self.latency_device or LATENCY_DEVICE

    @property
    def measured(self) -> ProfileRequest:
        """The profile that the plan needs: the asked one, with the formats that pins add to its palette."""
        formats = self.profile.formats or DEFAULT_FORMATS
        pinned = tuple(dict.fromkeys(fmt for _, fmt in self.pins if fmt != "native" and fmt not in formats))
        return replace(self.profile, formats=(*formats, *pinned)) if pinned else self.profile

    def check(self) -> None:
        """Raises UnknownName or UsageError before anything is loaded."""
        self.profile.check()
        Budget.parse(self.budget)
        _known("target", self.target, TARGETS)
        _known("solver", self.solver, SOLVERS)
        self._check_latency()
        for pattern, fmt in self.pins:
            if fmt != "native":
                _known("format", fmt, FORMATS)
            check_pin(pattern)

    def _check_latency(self) -> None:
        if self.latency_ms is None and self.latency_device is None:
            return
        _known("latency device", self.timed_on, devices())
        if self.latency_ms is None:
            raise UsageError(f"latency device {self.latency_device!r} without a limit does nothing; add --latency-ms")
        if not (math.isfinite(self.latency_ms) and 0 < self.latency_ms <= LONGEST):
            raise UsageError(
                f"a latency of {self.latency_ms} ms cannot be kept; give milliseconds above zero, at most {LONGEST:g}"
            )
        if self.solver in ONE_LIMIT:
            raise UsageError(f"solver {self.solver!r} takes one limit and --latency-ms is a second; use 'best' or 'dp'")


def calibration_digest(source: str | None) -> str:
    """SHA-256 over the files of a calibration source, or a fixed word for the text that is shipped."""
    if source is None:
        return "shipped"
    path = Path(source)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4096)


def _known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UnknownName(kind, name, known)


@cache
def _by_width() -> tuple[str, ...]:
    return tuple(sorted(FORMATS, key=_width))


def _width(name: str) -> tuple[Any, ...]:
    fmt = FORMATS[name]
    return fmt.bits, fmt.family == "float", -(fmt.group_size or 10**9), not fmt.symmetric, name
