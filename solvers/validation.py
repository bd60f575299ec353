"""What makes tables a problem, checked at the door: messages name the table, the item and the option, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Bools, Ints
from .rules import Rule

TOTAL_BITS = 60  # totals of losses and of costs stay below 2^60, so that 64-bit integers add them without overflow


def checked_tables(
    loss: npt.ArrayLike, cost: npt.ArrayLike, limit: npt.ArrayLike, allowed: npt.ArrayLike, floor: npt.ArrayLike
) -> dict[str, npt.NDArray[Any]]:
    """Copies of the tables by name, with zeros where an option is not allowed. Raises ValueError when they are no problem."""
    tables: tuple[npt.NDArray[Any], ...] = tuple(np.asarray(table) for table in (loss, cost, limit, allowed, floor))
    loss, cost, limit, allowed, floor = tables
    if loss.ndim != 2 or 0 in loss.shape:
        raise ValueError(f"loss must have the shape (items, options), at least one of each, not {loss.shape}")
    _check_shape(limit)
    if cost.shape != (*limit.shape, *loss.shape):
        raise ValueError(f"cost must have the shape {(*limit.shape, *loss.shape)} (resources, items, options), not {cost.shape}")
    if allowed.shape != loss.shape or allowed.dtype != np.bool_:
        raise ValueError(f"allowed must be booleans of the shape {loss.shape}, not {allowed.dtype} of shape {allowed.shape}")
    if not floor.size:
        floor = np.zeros_like(limit)
    if floor.shape != limit.shape:
        raise ValueError(f"floor must have the shape {limit.shape} of limit, not {floor.shape}")
    for name, table in (("cost", cost), ("limit", limit), ("floor", floor)):
        _check_whole(name, table)
    if not allowed.any(axis=1).all():
        raise ValueError(f"item {int(allowed.any(axis=1).argmin())} has no allowed option; allow one or leave the item out")
    loss = np.where(allowed, loss, 0.0).astype(np.float64)
    cost = np.where(allowed, cost, 0)
    if not np.isfinite(loss).all():
        raise ValueError(f"the loss of {_where(~np.isfinite(loss), loss)}; mark an undefined pair as not allowed instead")
    if np.any(loss < 0):
        raise ValueError(f"the loss of {_where(loss < 0, loss)}; add a constant to the item's losses, or clip noise at zero")
    if np.any(cost < 0):
        resource = int((cost < 0).any(axis=(1, 2)).argmax())
        where = _where(cost[resource] < 0, cost[resource])
        raise ValueError(f"the cost (resource {resource}) of {where}; add a constant to the item's costs and to the limit")
    if max(float(loss.max()), int(cost.max())) * len(loss) >= 2**TOTAL_BITS:
        raise ValueError("losses and costs must add up to less than 2**60; measure them in a larger unit")
    _check_bounds(limit, floor)
    whole = {"cost": cost.astype(np.int64), "limit": limit.astype(np.int64), "floor": floor.astype(np.int64)}
    return {"loss": loss, "allowed": allowed.copy(), **whole}


def checked_limit(limit: npt.ArrayLike, floor: Ints) -> Ints:
    """A copy of other limits for tables that were checked with this floor. Raises ValueError when they are none."""
    limit = np.asarray(limit)
    _check_shape(limit)
    if limit.shape != floor.shape:
        raise ValueError(f"limit must have the shape {floor.shape} of what it replaces, not {limit.shape}")
    _check_whole("limit", limit)
    _check_bounds(limit, floor)
    return limit.astype(np.int64)


def _check_shape(limit: npt.NDArray[Any]) -> None:
    if limit.ndim != 1 or 0 in limit.shape:
        raise ValueError(f"limit must have the shape (resources,), at least one, not {limit.shape}")


def _check_whole(name: str, table: npt.NDArray[Any]) -> None:
    if not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"{name} must be whole numbers (bytes, nanoseconds), not {table.dtype}{_fraction(name, table)}")


def _check_bounds(limit: npt.NDArray[Any], floor: npt.NDArray[Any]) -> None:
    if max(abs(number) for table in (limit, floor) for number in table.tolist()) >= 2**62:
        raise ValueError("limit and floor must stay below 2**62; a limit beyond every cost can be stated as the largest total")
    if np.any((floor > limit) & (floor > 0)):
        resource = int(((floor > limit) & (floor > 0)).argmax())
        raise ValueError(f"resource {resource} must cost at least {floor[resource]} and at most {limit[resource]}: no choice can")


def check_rules(rules: Sequence[Rule], allowed: Bools) -> None:
    """Raises ValueError for a rule about items or options that do not exist, or one that no choice can keep."""
    items, options = allowed.shape
    for rule in rules:
        if rule.item.min() < 0 or rule.item.max() >= items or rule.option.min() < 0 or rule.option.max() >= options:
            raise ValueError(f"the rule {rule.name!r} speaks of an item or option beyond the table of {items} by {options}")
        numbers = [int(np.abs(rule.weight).max()) * items, *(abs(edge) for edge in (rule.least, rule.most) if edge is not None)]
        if max(numbers) >= 2**TOTAL_BITS:
            raise ValueError(f"the rule {rule.name!r} must add up to less than 2**60; measure its weights in a larger unit")
        weight = np.zeros((items, options), dtype=np.int64)
        weight[rule.item, rule.option] = rule.weight
        lowest = int(np.where(allowed, weight, 2**TOTAL_BITS).min(axis=1).sum())
        highest = int(np.where(allowed, weight, -(2**TOTAL_BITS)).max(axis=1).sum())
        if (rule.least is not None and highest < rule.least) or (rule.most is not None and lowest > rule.most):
            raise ValueError(f"the rule {rule.name!r} cannot be kept: its sum lies between {lowest} and {highest}")


def _where(wrong: Bools, table: npt.NDArray[Any]) -> str:
    item, option = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return f"item {item}, option {option} is {table[item, option]}"


def _fraction(name: str, table: npt.NDArray[Any]) -> str:
    """Where the first fraction stands in a table that should be whole."""
    wrong = table != np.floor(table) if np.issubdtype(table.dtype, np.floating) else np.zeros(table.shape, dtype=np.bool_)
    if name == "cost" and wrong.any():
        resource = int(wrong.any(axis=(1, 2)).argmax())
        return f" (resource {resource}, {_where(wrong[resource], table[resource])}); choose a smaller unit and round on purpose"
    return "; convert them on purpose"
