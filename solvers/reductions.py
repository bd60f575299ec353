"""Reductions: turn a problem into a smaller one, and the smaller one's choice back into the first one's.

`fusions.py` and `chains.py` hold larger ones of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .arrays import Ints
from .problem import ChoiceProblem
from .rules import Rule


def merge_tied(problem: ChoiceProblem, groups: Sequence[Sequence[int]]) -> tuple[ChoiceProblem, Callable[[Ints], Ints]]:
    """Make one item of each group of items that must take the same option.

    A merged item's losses and costs are the sums over its members, and it may take what all of them may. It stands where
    its first member stood; items in no group stay as they are. In a rule, the weights of tied members on the same option
    add up; floors stay as they are. Returns the smaller problem and the function that turns a choice for it into the
    choice for `problem` with the same loss, cost and totals of rules.

    Raises ValueError when an item is unknown or in two groups, the members of a group have no option in common, or a rule
    cannot be kept by tied members.
    """
    leader = np.arange(problem.items)
    seen: set[int] = set()
    for group in groups:
        for item in group:
            if not 0 <= item < problem.items or item in seen:
                raise ValueError(f"item {item} must be one of the {problem.items} items and stand in one group only")
            seen.add(item)
            leader[item] = min(group)
    leaders, merged = np.unique(leader, return_inverse=True)
    shape = (len(leaders), problem.loss.shape[1])
    loss = np.zeros(shape)
    np.add.at(loss, merged, problem.loss)
    cost = np.zeros((problem.resources, *shape), dtype=np.int64)
    for total, part in zip(cost, problem.cost, strict=True):
        np.add.at(total, merged, part)
    allowed = np.ones(shape, dtype=np.bool_)
    np.logical_and.at(allowed, merged, problem.allowed)
    for row in np.flatnonzero(~allowed.any(axis=1)):
        members = np.flatnonzero(merged == row).tolist()
        raise ValueError(f"the tied items {members} have no allowed option in common; untie them or widen the palette")
    rules = tuple(_merged_rule(rule, merged, shape[1]) for rule in problem.rules)

    def invert(choice: Ints) -> Ints:
        return choice[merged]

    return ChoiceProblem(loss, cost, problem.limit, allowed, problem.floor, rules), invert


def _merged_rule(rule: Rule, merged: Ints, options: int) -> Rule:
    """The rule over the merged items, `merged[i]` being the one that item i became part of."""
    pairs, position = np.unique(merged[rule.item] * options + rule.option, return_inverse=True)
    weight = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(weight, position, rule.weight)
    return replace(rule, item=pairs // options, option=pairs % options, weight=weight)
