"""weight_error: how far the stored weights are from the weights, sum (W - W_format)^2 over the unit. Needs no data."""

from __future__ import annotations

from ..changes import squared_changes
from ..estimate import Estimate, empty_table
from ..study import Study


def estimate(study: Study) -> Estimate:
    """Squared weight error for every unit and format; no sampling error."""
    units = study.units
    table = empty_table(units, study.formats)
    for u, unit in enumerate(units):
        study.progress("estimate", u, len(units))
        table[u] = squared_changes(study.network, study.renderings, [unit], study.formats)[0]
    study.progress("estimate", len(units), len(units))
    return Estimate(table, None, 0, "squared weight error")
