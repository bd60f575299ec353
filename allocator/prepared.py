"""A model made ready to be measured, verified or executed: loaded, with its data and its renderings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..sensitivity import METRICS
from .request import ProfileRequest

if TYPE_CHECKING:
    from ..sensitivity.calibration import Calibration
    from ..sensitivity.render import Renderings
    from .models import Loaded


@dataclass(frozen=True, eq=False)
class Prepared:
    """A loaded model with its calibration data (None where the request needs none) and its renderings."""

    loaded: Loaded
    calibration: Calibration | None
    renderings: Renderings


def prepare(request: ProfileRequest, loaded: Loaded, home: Path) -> Prepared:
    """Calibration data and renderings for `request`. Raises UsageError when data is needed and cannot be had."""
    from ..sensitivity.render import Renderings
    from .data import load_calibration

    calibration = None
    if METRICS[request.metric].needs_data or request.rounding == "gptq":
        calibration = load_calibration(loaded, request.calibration, tokens=request.tokens, seed=request.seed)
    part = None if calibration is None or request.rounding != "gptq" else calibration.render
    return Prepared(loaded, calibration, Renderings(home, loaded.network, request.rounding, part))  # type: ignore[arg-type]
