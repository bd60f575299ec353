"""prior: a guess from what is known of other models, without any data of this one.

    loss[u, f] = a_u D_u(f)            D the relative weight error of the unit in the format (`relative_error.py`)

a_u is the increase of the divergence, in nats per token, per unit of relative error. Q-Palette (NeurIPS 2025, arXiv
2509.20214) ships such coefficients for each of the 224 matrices of LLaMA-3.1-8B; here stand their means over its 32
layers by role. They span factors of 8 to 100 inside one role: a guess. One matrix, `down` of layer 1, has 2.0971, without
which the mean of `down` would be 0.052.

    unit                                    a_u                                          from
    q, k, v, o, gate, up, down              mean of the role x 32 / layers               Q-Palette; scaling ours
    qkv, gate_up                            the sum of what is fused in it               ours: relative errors add up
    expert                                  gate + up + down, over the layer's experts   ours
    another role inside a layer             the mean of all roles                        ours
    outside the layers (embedding, head)    the mean of all roles x 32, whatever layers  ours: there is one of it, not one a layer

32 / layers takes it that a model as a whole is as sensitive as another, however many layers share it. There is no rule for
the depth of a layer: only least, mean and greatest coefficient are known by role, not where they stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..changes import relative_errors
from ..estimate import Estimate
from ..report import Floats
from ..study import Study
from ..units import Unit

LAYERS = 32  # of LLaMA-3.1-8B
BY_ROLE = {"q": 0.0125, "k": 0.0069, "v": 0.0317, "o": 0.0240, "gate": 0.0260, "up": 0.0386, "down": 0.1163}
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up"), "expert": ("gate", "up", "down")}
MEAN = sum(BY_ROLE.values()) / len(BY_ROLE)


def estimate(study: Study) -> Estimate:
    """The guess for every unit and format; no sampling error is known."""
    relative = relative_errors(study, study.progress)
    note = "no data was used: the losses are a guess from another model's coefficients by role and this one's weight errors"
    quantity = f"prior guess of the divergence, {study.network.quantity}"
    return Estimate(coefficients(study.units)[:, None] * relative, None, 0, quantity, (note,))


def coefficients(units: Sequence[Unit]) -> Floats:
    """a_u of each unit, (units,)."""
    layers = len({unit.layer for unit in units if unit.layer is not None})
    experts = Counter(unit.layer for unit in units if unit.kind == "expert")

    def coefficient(unit: Unit) -> float:
        if unit.layer is None:
            return MEAN * LAYERS
        whole = sum(BY_ROLE[role] for role in FUSED.get(unit.role, (unit.role,)) if role in BY_ROLE) or MEAN
        return whole * LAYERS / layers / max(1, experts[unit.layer] if unit.kind == "expert" else 1)

    return np.array([coefficient(unit) for unit in units])
