"""expert_frequency: how often a unit is used, times how much of its weights a format loses.

    loss[u, f] = n_u / tokens * weights_u * D_u(f)

n_u counts the tokens that the router sent to expert u, D_u(f) = ||dW||^2 / ||W||^2; a unit that is no expert is used by
every token. Frequency is the score by which QuantMoE-Bench (arXiv 2406.08155) gives the experts of a block 4 or 2 bits. It
ranks units by the score alone, so the score is multiplied by the number of weights: what a bit buys then follows it. An
expert that no token reached counts as reached by one (`routing.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..changes import weight_damage
from ..estimate import Estimate, jackknife_estimate
from ..report import Floats
from ..routing import Routing, at_least_once, collect_routing, for_units, missed_note
from ..study import Study


def estimate(study: Study) -> Estimate:
    """Share of tokens x number of weights x relative weight error for every unit and format."""
    routing = collect_routing(study.network, study.data, study.steps, study.progress)
    return share_estimate(study, routing, lambda counts, mass: counts, "share of tokens x squared relative weight error")


def share_estimate(study: Study, routing: Routing, use: Callable[[Floats, Floats], Floats], quantity: str) -> Estimate:
    """Weights x relative weight error, times how much of a unit is used per token: `use(counts, mass)` / tokens, one for a unit
    that is no expert."""
    units, columns, damage = study.units, routing.columns, weight_damage(study)
    width = len(columns)
    sums = [
        np.concatenate([counts, mass, [tokens]])
        for counts, mass, tokens in zip(routing.counts, routing.mass, routing.tokens, strict=True)
    ]

    def table(total: Floats) -> Floats:
        counts, mass = at_least_once(columns, total[:width], total[width : 2 * width])
        return for_units(units, columns, use(counts, mass) / total[-1], 1.0)[:, None] * damage

    return jackknife_estimate(sums, table, quantity, missed_note(units, routing.unit_counts(units)))
