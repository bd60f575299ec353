"""Level-switch evolution (EvoPress, arXiv 2410.14649): refine a choice by what a caller can measure, not by a table.

The options of an item, by rising cost, are its *levels*. A generation mutates the parent into many distinct offspring; stages
of rising precision thin them out, at the last with the parent among them, and who is left is the next parent. A mutation is
min(U1, U2) switches, U uniform over 1, 2, 3, so one switch with probability 5/9, two with 3/9, three with 1/9, and a switch

    lowers one item a level and raises another of its class by a step of the same cost         (mutation "switch")

where a *class* is the items with equal costs: the total stays what it was. Where sizes differ,

    so many items go up a level, then random ones down until the limits are kept               (mutation "exchange")

and a mutant is turned down when it took more than 10 steps or got back less than 0.8 of the cost that it gave up. Either
way a mutant that breaks a rule or a floor is turned down as well.

What is optimal by the table is for other solvers to find; this one makes sense where the fitness knows more than the table,
as a measured divergence does of how losses act together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import hull
from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables, answer, lower_bound, scaled
from .infeasible import no_choice
from .lagrangian import near_choice, relax
from .problem import ChoiceProblem, Solution, least_costs, without_choice
from .rows import Rows

Fitness = Callable[[Ints, int], npt.NDArray[Any]]
Mutation = Literal["switch", "exchange"]

STEPS = 10  # levels up and down in one exchange, at most
GOT_BACK = 0.8  # of the cost given up that an exchange must take, at least
BATCHES = 8  # of mutants drawn a generation at most; small problems have few distinct ones


def solve(
    problem: ChoiceProblem,
    *,
    time_limit: float | None = None,
    fitness: Fitness | None = None,
    start: Ints | None = None,
    mutation: Mutation | None = None,
    seed: int = 0,
    generations: int = 150,
    offspring: int = 128,
    stages: Sequence[int] = (16, 4, 1),
    patience: int = 50,
) -> Solution:
    """Evolution by level switches (EvoPress), for a fitness of the caller's: it refines a start and proves nothing new.

    `fitness(choices (k, n), stage)` gives k numbers, lower better; the table's loss where none is given. It may measure
    the later stages more precisely, and anew each time. `stages`: how many survive each; the last 1. `start` (n,): by
    default the choice of `hull` or, with several resources, floors or rules, that of `lagrangian`. `mutation`: "switch"
    where every item has another with the same costs, else "exchange". It ends early after `patience` generations whose parent
    stayed what it was, or where the table's loss cannot fall. The same `seed` gives the same answer.

    By the fitness of the last stage, the answer is never worse than the start. The certificate's multipliers are those of the
    relaxation, so its gap is that of the table's loss, which a fitness may well raise. LIMIT where `time_limit`, looked at
    between generations, came first.

    Raises ValueError when the start breaks a bound, a setting makes no sense, or the fitness gives no k numbers.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    if generations < 0 or offspring < 1 or not stages or stages[-1] != 1 or min(stages) < 1:
        raise ValueError(f"evolution needs offspring and stages that end with 1, not {offspring} and {list(stages)}")
    tables = scaled(problem)
    if problem.plain:
        least = least_costs(problem)
        if least[0] > problem.limit[0]:
            return without_choice(problem, least, "evolution", started, ("the limit of resource 0",))
        relaxation = hull.relax(tables)
        multipliers, found = [relaxation.multiplier], hull.fill(tables, relaxation.choice)
    else:
        dual = relax(tables, deadline)
        near, proven = (start, False) if start is not None else near_choice(tables, dual, deadline)
        if near is None:
            return no_choice(problem, tables, proven, "evolution", started, deadline)
        multipliers, found = dual.multipliers, near
    first = found if start is None else np.asarray(start, dtype=np.int64)
    answer(problem, first, multipliers, "evolution", started, tables=tables)  # refuses a start that is no choice or breaks a row

    ladder = Ladder.of(tables)
    if mutation is None:
        mutation = "switch" if ladder.all_in_classes else "exchange"
    enough = lower_bound(tables, multipliers) if fitness is None else None
    best, stopped, unchanged = first, False, 0
    rng = np.random.default_rng(seed)
    for _ in range(generations):
        if unchanged >= patience or (enough is not None and int(_loss(tables, best[None])[0]) <= enough):
            break
        if time.perf_counter() >= deadline:
            stopped = True
            break
        mutants = distinct_mutants(ladder, tables, best, offspring, rng, mutation)
        if not len(mutants):
            break
        parent, best = best, select(best, mutants, fitness or _table(tables), stages)
        unchanged = unchanged + 1 if np.array_equal(best, parent) else 0
    # A fitness that measures anew each time lets the parents drift: the last word is a comparison with the start.
    best = select(first, best[None], fitness or _table(tables), stages[-1:], stage=len(stages) - 1)
    return answer(problem, best, multipliers, "evolution", started, stopped=stopped, tables=tables)


@dataclass(frozen=True, eq=False)
class Ladder:
    """Items by levels. `option` (n, m): which option each level is; `level` (n, m) is the inverse; `top` (n,): the last level.

    `step` (n, m): the cost of going up from each level, as a number that is the same for equal costs; `cost` (r, n, m) is that
    cost, and `share` (n, m) the sum of its shares in the limits. `room` (r,): what the lowest levels leave of the limits.
    `kind` (n,): the class of an item; `many` (n,): whether others are in it.
    """

    option: Ints
    level: Ints
    top: Ints
    step: Ints
    cost: Ints
    share: Floats
    room: Ints
    kind: Ints
    many: Bools

    @classmethod
    def of(cls, tables: ScaledTables) -> Ladder:
        items, options = tables.loss.shape
        weight = np.maximum(tables.limit, 1)[:, None, None]
        size = np.where(tables.allowed, (tables.cost / weight).sum(axis=0), np.inf)
        order = np.argsort(size, axis=1, kind="stable")
        level = np.argsort(order, axis=1, kind="stable")
        there = np.take_along_axis(tables.allowed, order, axis=1)
        above = there.copy()
        above[:, :-1], above[:, -1] = there[:, 1:], False
        rising = np.take_along_axis(tables.cost, np.broadcast_to(order, tables.cost.shape), axis=2)
        cost = np.where(above, np.diff(rising, axis=2, append=rising[:, :, -1:]), 0)
        vectors = cost.reshape(len(cost), -1).T
        step = np.unique(vectors, axis=0, return_inverse=True)[1].reshape(items, options)
        costs = np.where(tables.allowed, tables.cost, -1).transpose(1, 0, 2).reshape(items, -1)
        kind = np.unique(costs, axis=0, return_inverse=True)[1].reshape(items)
        many = np.bincount(kind)[kind] > 1
        room = tables.limit - rising[:, :, 0].sum(axis=1)
        return cls(order, level, there.sum(axis=1) - 1, step, cost, (cost / weight).sum(axis=0), room, kind, many)

    @property
    def all_in_classes(self) -> bool:
        return bool(self.many.all())

    def levels(self, choice: Ints) -> Ints:
        """The levels (n,) of a choice (n,)."""
        return np.array(self.level[np.arange(len(choice)), choice])

    def choices(self, levels: Ints) -> Ints:
        """The choices (k, n) at levels (k, n)."""
        return np.array(self.option[np.arange(levels.shape[1]), levels])


def switches(count: int, rng: np.random.Generator) -> Ints:
    """How many switches each of `count` mutants gets: min(U1, U2), U uniform over 1, 2, 3."""
    fewest: Ints = rng.integers(1, 4, (2, count)).min(axis=0)
    return fewest


def mutate(ladder: Ladder, choice: Ints, count: int, rng: np.random.Generator, mutation: Mutation = "switch") -> Ints:
    """At most `count` mutants (k, n) of a choice (n,): those of `count` tries that came off. See the top of this file.

    By switches, the totals of all resources are those of the choice; by exchange they are within the limits.
    A mutant may equal the choice or another, where a switch undoes an earlier one.
    """
    levels = np.tile(ladder.levels(choice), (count, 1))
    wanted = switches(count, rng)
    done = _switch(ladder, levels, wanted, rng) if mutation == "switch" else _exchange(ladder, levels, wanted, rng)
    return ladder.choices(levels[done])


def _switch(ladder: Ladder, levels: Ints, wanted: Ints, rng: np.random.Generator) -> Bools:
    """Switch the rows of `levels` (k, n) in place; which rows had what they wanted."""
    done = np.ones(len(levels), dtype=np.bool_)
    members = np.flatnonzero(ladder.many)
    if not len(members):
        return ~done
    items = np.arange(levels.shape[1])
    for turn in range(int(wanted.max())):
        rows = np.flatnonzero(done & (wanted > turn))
        # A class with probability in proportion to its items is the class of a random item.
        same = ladder.kind == ladder.kind[rng.choice(members, len(rows))][:, None]
        now = levels[rows]
        down, lowered = _pick(same & (now > 0), rng)
        given_up = ladder.step[down, now[np.arange(len(rows)), down] - 1]
        up, raised = _pick(
            same & (now < ladder.top) & (ladder.step[items, now] == given_up[:, None]) & (items != down[:, None]), rng
        )
        came_off = lowered & raised
        done[rows[~came_off]] = False
        rows, down, up = rows[came_off], down[came_off], up[came_off]
        levels[rows, down] -= 1
        levels[rows, up] += 1
    return done


def _exchange(ladder: Ladder, levels: Ints, wanted: Ints, rng: np.random.Generator) -> Bools:
    """Exchange the rows of `levels` (k, n) in place; which rows are within the limits and not turned down."""
    items = np.arange(levels.shape[1])
    climbed = np.concatenate([np.zeros_like(ladder.cost[:, :, :1]), ladder.cost.cumsum(axis=2)], axis=2)
    left = ladder.room[:, None] - climbed[:, items, levels].sum(axis=2)
    taken, given_up = np.zeros(len(levels)), np.zeros(len(levels))
    done = np.ones(len(levels), dtype=np.bool_)
    for turn in range(STEPS):
        rising = wanted > turn
        rows = np.flatnonzero(done & (rising | (left < 0).any(axis=0)))
        if not len(rows):
            break
        now = levels[rows]
        up: Bools = rising[rows]
        item, there = _pick(np.where(up[:, None], now < ladder.top, now > 0), rng)
        done[rows[~there]] = False
        rows, item, up = rows[there], item[there], up[there]
        at = levels[rows, item] - (1 - up)
        left[:, rows] -= np.where(up, 1, -1) * ladder.cost[:, item, at]
        taken[rows] += np.where(up, ladder.share[item, at], 0.0)
        given_up[rows] += np.where(up, 0.0, ladder.share[item, at])
        levels[rows, item] += np.where(up, 1, -1)
        done &= taken >= GOT_BACK * given_up  # steps up come first, so what is behind now stays behind
    within: Bools = (left >= 0).all(axis=0)
    return done & within


def _pick(among: Bools, rng: np.random.Generator) -> tuple[Ints, Bools]:
    """For each row of `among` (k, n) a random column that is true, and whether there is one."""
    keys = np.where(among, rng.random(among.shape), -1.0)
    column = keys.argmax(axis=1)
    there: Bools = among[np.arange(len(column)), column]
    return column, there


def distinct_mutants(
    ladder: Ladder, tables: ScaledTables, parent: Ints, count: int, rng: np.random.Generator, mutation: Mutation
) -> Ints:
    """`count` mutants (k, n) of `parent` that keep every row, differ from it and from each other; fewer where so many are not."""
    seen = {parent.tobytes()}
    found: list[Ints] = []
    for _ in range(BATCHES):
        before, mutants = len(found), mutate(ladder, parent, count, rng, mutation)
        for mutant in mutants[kept(tables.rows, mutants)]:
            if mutant.tobytes() not in seen:
                seen.add(mutant.tobytes())
                found.append(mutant)
        if len(found) >= count or len(found) == before:
            break
    return np.array(found[:count], dtype=np.int64).reshape(-1, len(parent))


def kept(rows: Rows, choices: Ints) -> Bools:
    """Which of `choices` (k, n) keep every row."""
    items = np.arange(choices.shape[1])
    totals = [cost[items, choices].sum(axis=1) for cost in rows.cost]
    totals += [((choices[:, rule.item] == rule.option) * rule.weight).sum(axis=1) for rule in rows.rules]
    table: Ints = np.array(totals)
    broken = (table < rows.least[:, None]) | (table > rows.most[:, None])
    return np.asarray(~broken.any(axis=0), dtype=np.bool_)


def select(parent: Ints, mutants: Ints, fitness: Fitness, stages: Sequence[int], *, stage: int = 0) -> Ints:
    """The fittest (n,) after the `stages`, the first of which is number `stage`; the parent takes part in the last.

    Of equals the parent stays, then the earlier. Numbers that are none count as the worst.
    """
    pool = mutants
    for number, survivors in enumerate(stages, start=stage):
        if number == stage + len(stages) - 1:
            pool = np.vstack([parent[None], pool])
        values = np.asarray(fitness(pool, number))
        if values.shape != (len(pool),):
            raise ValueError(f"the fitness of {len(pool)} choices must be as many numbers, not an array of shape {values.shape}")
        pool = pool[np.argsort(values, kind="stable")[:survivors]]
    return np.array(pool[0])


def _table(tables: ScaledTables) -> Fitness:
    return lambda choices, _: _loss(tables, choices)


def _loss(tables: ScaledTables, choices: Ints) -> Ints:
    total: Ints = tables.loss[np.arange(choices.shape[1]), choices].sum(axis=1)
    return total
