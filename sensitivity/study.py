"""Study: the question that every estimator answers, what each unit of a network loses in each format, and how to go about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .calibration import Part
from .network import Network
from .progress import Progress, Steps, compute_always, silent
from .render import Renderings
from .units import Unit


@dataclass(frozen=True, eq=False)
class Study:
    """What an estimator is asked. The table has a row for each unit of `network` and a column for each of `formats`.

    `renderings` hold every unit in every format that it admits; `part` is the data to estimate on, which is not what the
    weights were rounded on, and None where there is none. All that is drawn at random follows from `seed`. `steps` runs the
    pieces of the work and may remember them; `progress` is told how far it is, and may raise to stop it.
    """

    network: Network
    renderings: Renderings
    part: Part | None
    formats: Sequence[str]
    seed: int = 0
    steps: Steps = compute_always
    progress: Progress = silent

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.network.inventory.units

    @property
    def data(self) -> Part:
        """`part`, for metrics that cannot do without it. Raises ValueError when it is None."""
        if self.part is None:
            raise ValueError("this estimate needs calibration data; give some, or use weight_error")
        return self.part
