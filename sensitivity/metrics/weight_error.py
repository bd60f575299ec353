"""weight_error: how far the stored weights are from the weights, sum (W - W_format)^2 over the unit. Needs no data."""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration import Part
from ..changes import squared_changes
from ..estimate import Estimate, empty_table
from ..network import Network
from ..progress import Progress, Steps
from ..render import Renderings


def estimate(
    network: Network,
    renderings: Renderings,
    part: Part | None,
    formats: Sequence[str],
    seed: int,
    steps: Steps,
    progress: Progress,
) -> Estimate:
    """Squared weight error for every unit and format; no sampling error."""
    units = network.inventory.units
    table = empty_table(units, formats)
    for u, unit in enumerate(units):
        progress("estimate", u, len(units))
        table[u] = squared_changes(network, renderings, [unit], formats)[0]
    progress("estimate", len(units), len(units))
    return Estimate(table, None, 0, "squared weight error")
