"""What a stranger does with a plan document who trusts neither the solver nor this package: thirty lines of plain Python."""

from __future__ import annotations

import json
from fractions import Fraction


def check(text: str) -> Fraction:
    """Raise AssertionError unless the plan in `text` keeps its limits and its certificate holds; returns the exact gap."""
    plan = json.loads(text)
    proof, predicted = plan["certificate"], plan["predicted"]
    loss, cost, choice = proof["loss"], proof["cost"], proof["choice"]
    assert len(loss) == len(cost) == len(choice) == len(proof["items"])
    assert all(loss[i][j] is not None for i, j in enumerate(choice)), "an option is taken that is not allowed"
    spent = sum(cost[i][j] for i, j in enumerate(choice))
    assert spent <= proof["limit"] <= plan["budget"]["units_limit_bytes"], "the limit is broken"
    assert spent + predicted["bytes"]["fixed"] == predicted["bytes"]["total"] <= plan["budget"]["limit_bytes"]

    price = Fraction(proof["multiplier_numerator"], proof["multiplier_denominator"])
    assert price >= 0
    least = [min(e + price * c for e, c in zip(*row, strict=True) if e is not None) for row in zip(loss, cost, strict=True)]
    bound = sum(least) - price * proof["limit"]
    total = sum(loss[i][j] for i, j in enumerate(choice))
    gap: Fraction = total - bound
    assert gap >= 0, "the bound lies above a plan within the limit"
    assert (proof["proof"] == "multipliers") == (gap == 0)
    scale = proof["loss_scale"]
    assert proof["lower_bound"] == float(bound / scale)
    assert proof["gap"] == float(gap / scale)
    # Each integer loss is off by half a unit at most, and floating-point sums by some of their last digits.
    assert abs(predicted["loss"] - total / scale) <= len(choice) / scale + 1e-12 * predicted["loss"]

    taken = {unit: proof["formats"][j] for units, j in zip(proof["items"], choice, strict=True) for unit in units}
    assert taken == plan["assignment"], "the assignment is not the choice"
    return gap
