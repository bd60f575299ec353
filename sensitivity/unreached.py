"""unreached: a loss for the experts that no token of the data reached.

Whatever a metric measures, it finds that such an expert costs nothing, and a plan would give it the fewest bits that there
are. That no token of a small part reached it does not say that none ever will. It gets the loss that one token would have
given it:

    loss[e, f] = sum over the reached experts of its layer of loss[., f] / sum of the tokens that reached them

and no more than the least of what the experts with the fewest tokens have. Where a layer has no expert that was reached,
those of all layers stand in for it. The standard error is the loss itself: it is a guess.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .estimate import Estimate
from .report import Floats
from .units import Inventory


def fill_unreached(estimate: Estimate, inventory: Inventory, counts: Floats) -> Estimate:
    """`estimate` with a loss for every expert that `counts` (units,), the tokens that reached each unit, has at zero.

    One that has a loss already, by a rule of its metric's own, keeps it. Raises ValueError when `counts` are not those of
    the inventory's units.
    """
    units = inventory.units
    if counts.shape != (len(units),):
        raise ValueError(f"{len(units)} units need as many counts, not {counts.shape}")
    reached = [u for u, unit in enumerate(units) if unit.kind == "expert" and counts[u] > 0]
    missed = [u for u, unit in enumerate(units) if unit.kind == "expert" and counts[u] == 0 and not np.nansum(estimate.loss[u])]
    if not missed or not reached:
        return estimate
    loss = estimate.loss.copy()
    stderr = None if estimate.stderr is None else estimate.stderr.copy()
    for u in missed:
        beside = [other for other in reached if units[other].layer == units[u].layer] or reached
        loss[u] += one_token(estimate.loss[beside], counts[beside])  # it was zero, or NaN, which it stays
        if stderr is not None:
            stderr[u] = loss[u]
    experts = sum(unit.kind == "expert" for unit in units)
    note = f"{len(missed)} of {experts} experts were reached by no token and have the loss that one token would have given them"
    return replace(estimate, loss=loss, stderr=stderr, notes=(*estimate.notes, note))


def one_token(loss: Floats, counts: Floats) -> Floats:
    """What one token costs on average, (formats,), from `loss` (experts, formats) and the tokens of each of these experts."""
    known = np.isfinite(loss)
    tokens = np.where(known, counts[:, None], 0.0).sum(axis=0)
    mean = np.divide(np.where(known, loss, 0.0).sum(axis=0), tokens, out=np.zeros(loss.shape[1]), where=tokens > 0)
    least = np.where(loss > 0, loss, np.inf)[counts == counts.min()].min(axis=0)
    found: Floats = np.minimum(mean, least)
    return found
