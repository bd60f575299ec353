"""What a stranger does with a plan document who trusts neither the solver nor this package: forty lines of plain Python."""

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

    limits = [proof, *filter(None, [proof.get("latency")])]  # bytes, and nanoseconds where they are limited
    prices = [Fraction(limit["multiplier_numerator"], limit["multiplier_denominator"]) for limit in limits]
    assert all(price >= 0 for price in prices)
    priced = [
        [sum(price * limit["cost"][i][j] for price, limit in zip(prices, limits, strict=True)) for j in range(len(row))]
        for i, row in enumerate(loss)
    ]
    least = [min(e + p for e, p in zip(*row, strict=True) if e is not None) for row in zip(loss, priced, strict=True)]
    bound = sum(least) - sum(price * limit["limit"] for price, limit in zip(prices, limits, strict=True))
    assert ("latency" in proof) == ("latency" in plan["budget"]) == ("latency" in predicted), "a limit is missing"
    if "latency" in proof:
        taken_ns = sum(proof["latency"]["cost"][i][j] for i, j in enumerate(choice))
        assert taken_ns <= proof["latency"]["limit"] == round(1e6 * plan["budget"]["latency"]["limit_ms"])
        assert predicted["latency"]["ms"] == taken_ns / 1e6
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
