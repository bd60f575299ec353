"""Which units are fed spikes, and the pins that protect them: a constraint for a plan, found on calibration data."""

from __future__ import annotations

import re
from pathlib import Path

from ..sensitivity.progress import Progress, silent
from ..sensitivity.spikes import THRESHOLD, Spike, find_spikes, protected
from .data import load_calibration
from .device import choose_device
from .home import home_folder
from .profile import load_model
from .request import ProfileRequest
from .source import resolve

__all__ = ["Spike", "protecting_pins", "spiked_units"]


def spiked_units(request: ProfileRequest, *, home: Path | str | None = None, progress: Progress = silent) -> tuple[Spike, ...]:
    """Every unit with the largest and the 0.999 quantile of its inputs' magnitudes, those that stand out most first.

    Only model, calibration, tokens, seed and device of `request` matter. Raises UsageError, ModelError.
    """
    request.check()
    device = choose_device(request.device)
    loaded = load_model(resolve(request.model), home_folder(home), progress, device)
    part = load_calibration(loaded, request.calibration, tokens=request.tokens, seed=request.seed).estimate
    return tuple(sorted(find_spikes(loaded.network, part, progress), key=lambda spike: -spike.ratio))


def protecting_pins(spikes: tuple[Spike, ...], threshold: float = THRESHOLD) -> tuple[tuple[str, str], ...]:
    """Pins, as `PlanRequest` takes them, that leave the units above `threshold` in their own dtype."""
    return tuple((re.escape(name), "native") for name in protected(spikes, threshold))
