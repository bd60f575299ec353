"""router_mass: how much of its attention the router gives a unit, times how much of its weights a format loses.

    loss[u, f] = w_u / tokens * weights_u * D_u(f)

w_u adds up the router's probability of expert u over the tokens that were sent to it, before the probabilities of the
chosen experts are scaled up to one (the second statistic of MC-MoE, arXiv 2410.06270); a unit that is no expert has mass
1 for every token. Otherwise as `expert_frequency`: an expert that is often chosen by a narrow margin counts for less here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration import Part
from ..changes import weight_damage
from ..estimate import Estimate
from ..network import Network
from ..progress import Progress, Steps
from ..render import Renderings
from ..routing import collect_routing, require_mass
from .expert_frequency import share_estimate


def estimate(
    network: Network,
    renderings: Renderings,
    part: Part,
    formats: Sequence[str],
    seed: int,
    steps: Steps,
    progress: Progress,
) -> Estimate:
    """Router mass per token x number of weights x relative weight error for every unit and format.

    Raises ValueError when a block's router cannot be found.
    """
    routing = collect_routing(network, part, steps, progress)
    require_mass(routing)
    damage = weight_damage(network, renderings, formats)
    return share_estimate(network, routing, damage, lambda counts, mass: mass, "router mass x relative weight error")
