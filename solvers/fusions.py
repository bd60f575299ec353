"""Fusion: items that may run as one, at a cost of its own, made into single items with composite options.

Several matrices that read the same input can be one kernel, which then needs one format for all of them and takes less time
than the kernels one by one (Q-Palette, arXiv 2509.20214: q, k and v; up and gate). An option of a composite item is a
*partition* of its members into *parts*, each a single member or a set that may be fused, with an option for each part. So
no row has to couple the members, and what was one limit stays one limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .arrays import Bools, Floats, Ints
from .problem import ChoiceProblem
from .rules import Rule

MOST_OPTIONS = 2**22  # composite options of one item at a time


@dataclass(frozen=True, eq=False)
class Fusion:
    """`members`, two or more items, may run as one, all with the same option j, at `cost[:, j]` rather than their sum.

    `cost` (r, m) whole numbers. The loss is the members' sum. An option is open where every member may take it and
    `allowed` (m,), where given, says that there is a kernel for it.
    """

    members: tuple[int, ...]
    cost: Ints
    allowed: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))


@dataclass(frozen=True, eq=False)
class FusedChoice:
    """`choice` (n,) of the original items, and `fused`: the sets of them that run as one."""

    choice: Ints
    fused: tuple[tuple[int, ...], ...]


def fuse(problem: ChoiceProblem, fusions: Sequence[Fusion]) -> tuple[ChoiceProblem, Callable[[Ints], FusedChoice]]:
    """Make one item of the items that fusions join; its options are all partitions into parts, times the parts' options.

    Items that no fusion names keep their allowed options, and a composite item stands where its first member stood. Of three
    items with m options, each pair and all three of which may be fused, this makes m^3 + 3 m^2 + m options. Those that another
    one equals or beats in loss and in all costs are dropped, which loses no optimum (of equals the one with fewer fusions
    stays); all are kept where the problem has a floor or a rule speaks of a member. Rules count every member's option as
    before. Returns the problem and the function that turns a choice for it back.

    Raises ValueError for an unknown item, a fusion of fewer than two items or named twice, a cost table of the wrong shape,
    or more than 2^22 composite options.

    Q-Palette, section on fusion-aware allocation; as composite options rather than rows that cover each item once.
    """
    sets = _checked(problem, fusions)
    groups = _joined(problem.items, list(sets))
    ruled = {int(item) for rule in problem.rules for item in rule.item}
    composites = [_composite(problem, group, sets, drop=not problem.floor.any() and ruled.isdisjoint(group)) for group in groups]
    width = max(len(composite.loss) for composite in composites)
    loss = np.zeros((len(groups), width))
    cost = np.zeros((problem.resources, len(groups), width), dtype=np.int64)
    allowed = np.zeros((len(groups), width), dtype=np.bool_)
    for row, composite in enumerate(composites):
        count = len(composite.loss)
        loss[row, :count], cost[:, row, :count], allowed[row, :count] = composite.loss, composite.cost, True
    rules = tuple(_composite_rule(rule, problem.loss.shape, composites) for rule in problem.rules)

    def invert(choice: Ints) -> FusedChoice:
        original = np.zeros(problem.items, dtype=np.int64)
        fused: list[tuple[int, ...]] = []
        for composite, option in zip(composites, choice.tolist(), strict=True):
            original[list(composite.members)] = composite.picks[option]
            fused += [part for part in composite.partitions[composite.partition[option]] if len(part) > 1]
        return FusedChoice(original, tuple(fused))

    return ChoiceProblem(loss, cost, problem.limit, allowed, problem.floor, rules), invert


@dataclass(frozen=True, eq=False)
class _Composite:
    """An item made of `members`: k options with `loss` (k,), `cost` (r, k), and what each means: `picks` (k, members), the
    members' options, and `partition` (k,), an index into `partitions`."""

    members: tuple[int, ...]
    partitions: list[tuple[tuple[int, ...], ...]]
    loss: Floats
    cost: Ints
    picks: Ints
    partition: Ints


def _checked(problem: ChoiceProblem, fusions: Sequence[Fusion]) -> dict[tuple[int, ...], Fusion]:
    """The fusions by their members in rising order."""
    sets: dict[tuple[int, ...], Fusion] = {}
    shape = (problem.resources, problem.loss.shape[1])
    for fusion in fusions:
        members = tuple(sorted(fusion.members))
        if len(set(members)) < max(2, len(members)) or members[0] < 0 or members[-1] >= problem.items:
            raise ValueError(f"a fusion joins two or more of the {problem.items} items, each once, not {fusion.members}")
        if members in sets:
            raise ValueError(f"the fusion of {members} is given twice; keep the cheaper cost of each option")
        if fusion.cost.shape != shape or not np.issubdtype(fusion.cost.dtype, np.integer) or fusion.cost.min() < 0:
            raise ValueError(f"the cost of fusing {members} must be whole numbers >= 0 of the shape {shape}")
        if fusion.allowed.size and fusion.allowed.shape != shape[1:]:
            raise ValueError(f"allowed of the fusion of {members} must have the shape {shape[1:]}")
        sets[members] = fusion
    return sets


def _joined(items: int, sets: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The items in groups, each of those that a chain of sets joins; in the order of their first members."""
    leader = list(range(items))
    for members in sets:
        joined = {leader[member] for member in members}
        if len(joined) > 1:
            first = min(joined)
            leader = [first if each in joined else each for each in leader]
    groups: dict[int, list[int]] = {}
    for item, first in enumerate(leader):
        groups.setdefault(first, []).append(item)
    return [tuple(group) for group in groups.values()]


def _partitions(members: tuple[int, ...], sets: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every way to cut `members` into single members and `sets`."""
    if not members:
        yield ()
        return
    parts = [(members[0],), *(each for each in sets if each[0] == members[0] and set(each) <= set(members))]
    for part in parts:
        for others in _partitions(tuple(member for member in members if member not in part), sets):
            yield (part, *others)


def _composite(
    problem: ChoiceProblem, members: tuple[int, ...], sets: dict[tuple[int, ...], Fusion], *, drop: bool
) -> _Composite:
    """The item made of `members`, without dominated options if `drop`."""
    inside = [each for each in sets if set(each) <= set(members)]
    partitions = sorted(_partitions(members, inside), key=len, reverse=True)
    found: list[tuple[Floats, Ints, Ints, Ints]] = []
    for number, partition in enumerate(partitions):
        loss, cost = np.zeros(1), np.zeros((problem.resources, 1), dtype=np.int64)
        picks = np.zeros((1, len(members)), dtype=np.int64)
        for part in partition:
            rows = list(part)
            allowed = problem.allowed[rows].all(axis=0)
            if len(part) > 1 and sets[part].allowed.size:
                allowed = allowed & sets[part].allowed
            options = np.flatnonzero(allowed)
            if len(loss) * len(options) > MOST_OPTIONS:
                raise ValueError(
                    f"fusing the items {members} makes more than {MOST_OPTIONS} options; fuse fewer, or thin them out"
                )
            spent = problem.cost[:, part[0]] if len(part) == 1 else sets[part].cost.astype(np.int64)
            loss = np.add.outer(loss, problem.loss[rows][:, options].sum(axis=0)).ravel()
            cost = (cost[:, :, None] + spent[:, None, options]).reshape(problem.resources, -1)
            picks = np.repeat(picks, len(options), axis=0)
            places = [members.index(member) for member in part]
            picks[:, places] = np.tile(options, len(picks) // max(1, len(options)))[:, None]
            if drop and len(partition) > 1:  # what is dominated among the parts so far is so in every completion
                kept = undominated(loss, cost)
                loss, cost, picks = loss[kept], cost[:, kept], picks[kept]
        found.append((loss, cost, picks, np.full(len(loss), number)))
    loss, cost, picks, index = (np.concatenate(part, axis=-1 if n == 1 else 0) for n, part in enumerate(zip(*found, strict=True)))
    if drop and len(members) > 1:  # an item that is no composite keeps its columns as they are
        kept = undominated(loss, cost)
        loss, cost, picks, index = loss[kept], cost[:, kept], picks[kept], index[kept]
    return _Composite(members, partitions, loss, cost, picks, index)


def undominated(loss: Floats, cost: Ints) -> Ints:
    """Indices, rising, of the points (loss (k,), cost (r, k)) that no other equals or beats in everything; of equals the first.

    For one resource by one sort, O(k log k); for several by letting every survivor strike out what it dominates.
    """
    if len(cost) == 1:
        order = np.lexsort((loss, cost[0]))
        falling = loss[order]
        kept = np.ones(len(order), dtype=np.bool_)
        kept[1:] = falling[1:] < np.minimum.accumulate(falling)[:-1]
        return np.sort(order[kept])
    ranks = np.array([np.unique(row, return_inverse=True)[1] for row in (loss, *cost)])
    totals = ranks.sum(axis=0)
    left = np.arange(len(loss))
    survivors: list[int] = []
    while len(left):
        # What dominates a point has a smaller total of ranks, so the least is undominated; and it strikes out most.
        best = int(totals.argmin())
        survivors.append(int(left[best]))
        stays = (ranks < ranks[:, best, None]).any(axis=0)
        left, ranks, totals = left[stays], ranks[:, stays], totals[stays]
    return np.array(sorted(survivors), dtype=np.int64)


def _composite_rule(rule: Rule, shape: tuple[int, ...], composites: Sequence[_Composite]) -> Rule:
    """The rule over composite options: the weight of each is what its members' options weigh together."""
    table = np.zeros(shape, dtype=np.int64)
    table[rule.item, rule.option] = rule.weight
    named = set(rule.item.tolist())
    found = [np.zeros((3, 0), dtype=np.int64)]  # item, option, weight
    for row, composite in enumerate(composites):
        if not named.isdisjoint(composite.members):
            weight = table[np.array(composite.members), composite.picks].sum(axis=1)
            there = np.flatnonzero(weight)
            found.append(np.array([np.full(len(there), row), there, weight[there]]))
    item, option, weight = np.hstack(found)
    if not len(item):  # nothing that the rule weighs is left: it keeps a pair that weighs nothing
        item, option, weight = (np.zeros(1, dtype=np.int64) for _ in range(3))
    return Rule(rule.name, item, option, weight, rule.least, rule.most)
