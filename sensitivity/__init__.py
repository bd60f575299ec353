"""How much each unit minds each format. METRICS is the list to start from.

Importing this folder loads no torch; a metric's file is loaded when it is first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A sensitivity estimator: `sensitivity/<name>.py`, function `estimate`."""

    name: str
    summary: str
    needs_data: bool

    def estimate(self, *arguments: Any, **settings: Any) -> Any:
        """Calls the file's `estimate(network, renderings, part, formats, seed, steps, progress) -> Estimate`."""
        return import_module(f".{self.name}", __name__).estimate(*arguments, **settings)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("kl_fisher", "second-order estimate of the output's own divergence, one backward pass a batch (default)", True),
        Metric("divergence", "measured divergence, one unit at a time: slow, the judge of the others", True),
        Metric("output_error", "squared error of the unit's own output, the layer-wise Hessian proxy", True),
        Metric("weight_error", "squared error of the weights; needs no data", False),
    )
}
