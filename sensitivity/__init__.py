"""How much each unit minds each format. METRICS is the list to start from.

Importing this folder loads no torch; a metric's file is loaded when it is first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A sensitivity estimator: `sensitivity/<name>.py`, function `estimate`.

    `family` is what kind of evidence it rests on; `streams` says that it can run block by block (its file has a FLOW);
    `only` names the families of models that it is for, where it is not for all.
    """

    name: str
    family: str
    summary: str
    needs_data: bool = True
    streams: bool = False
    only: tuple[str, ...] = ()

    def estimate(self, network: Any, renderings: Any, part: Any, *settings: Any) -> Any:
        """Calls the file's `estimate(network, renderings, part, formats, seed, steps, progress) -> Estimate`.

        Raises ValueError when data is needed and there is none, when it is what the weights were rounded on, or when the
        metric is not for this kind of model.
        """
        found = network.inventory.family
        if self.only and found not in self.only:
            raise ValueError(f"{self.name} is for {' and '.join(self.only)} models and this is a {found} one; use kl_fisher")
        if self.needs_data and part is None:
            raise ValueError(f"{self.name} needs calibration data; give some, or use weight_error")
        if self.needs_data and renderings.part is not None:
            from .calibration import assert_disjoint

            assert_disjoint(part, renderings.part)
        return self.module.estimate(network, renderings, part, *settings)

    @property
    def module(self) -> Any:
        return import_module(f".{self.name}", __name__)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "kl_fisher",
            "curvature",
            "second-order estimate of the output's own divergence, one backward pass a batch (default)",
            streams=True,
        ),
        Metric("divergence", "measured", "measured divergence, one unit at a time: slow, the judge of the others"),
        Metric(
            "output_error",
            "reconstruction",
            "squared error of the unit's own output, the layer-wise Hessian proxy",
            streams=True,
        ),
        Metric("weight_error", "reconstruction", "squared error of the weights; needs no data", needs_data=False),
    )
}
