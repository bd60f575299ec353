"""router_mass: how much of its attention the router gives a unit, times how much of its weights a format loses.

    loss[u, f] = w_u / tokens * weights_u * D_u(f)

w_u adds up the router's probability of expert u over the tokens that were sent to it, before the probabilities of the
chosen experts are scaled up to one (the second statistic of MC-MoE, arXiv 2410.06270); a unit that is no expert has mass
1 for every token. Otherwise as `expert_frequency`: an expert that is often chosen by a narrow margin counts for less here.
"""

from __future__ import annotations

from ..estimate import Estimate
from ..routing import collect_routing, require_mass
from ..study import Study
from .expert_frequency import share_estimate


def estimate(study: Study) -> Estimate:
    """Router mass per token x number of weights x relative weight error for every unit and format.

    Raises ValueError when a block's router cannot be found.
    """
    routing = collect_routing(study.network, study.data, study.steps, study.progress)
    require_mass(routing)
    return share_estimate(study, routing, lambda counts, mass: mass, "router mass x relative weight error")
