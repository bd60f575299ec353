"""Rows: every linear constraint of a problem in one form, the resources first and the rules after them.

    least[q] <= sum_i a[q, i, x_i] <= most[q]

where a[q] is a table of costs or, for a rule, the few weights that it names. Multipliers, certificates and solvers see rows
and need not ask which of them are resources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .arrays import Floats, Ints
from .rules import Rule

FREE = 2**62  # beyond every total: the bound of a row that is not bounded on that side


@dataclass(frozen=True, eq=False)
class Rows:
    """`cost` (r, n, m), `rules` (k of them); `least`, `most` (r + k,) with -FREE and FREE where there is no bound."""

    cost: Ints
    rules: tuple[Rule, ...]
    least: Ints
    most: Ints

    @classmethod
    def of(cls, cost: Ints, limit: Ints, floor: Ints, rules: Sequence[Rule]) -> Rows:
        least = [-FREE if rule.least is None else rule.least for rule in rules]
        most = [FREE if rule.most is None else rule.most for rule in rules]
        return cls(cost, tuple(rules), np.append(floor, least).astype(np.int64), np.append(limit, most).astype(np.int64))

    def __len__(self) -> int:
        return len(self.least)

    def table(self, row: int) -> Ints:
        """a[row] (n, m), dense."""
        dense: Ints = self.cost[min(row, len(self.cost) - 1)]
        if row < len(self.cost):
            return dense
        rule, dense = self.rules[row - len(self.cost)], np.zeros_like(dense)
        dense[rule.item, rule.option] = rule.weight
        return dense

    def totals(self, choice: Ints) -> Ints:
        """The sums (r + k,) that the rows bound, for a choice (n,)."""
        spent = self.cost[:, np.arange(len(choice)), choice].sum(axis=1)
        return np.append(spent, [rule.total(choice) for rule in self.rules]).astype(np.int64)

    def priced(self, loss: Floats, prices: Sequence[float]) -> Floats:
        """loss + sum_q prices[q] a[q], shape (n, m), in floating point."""
        priced = loss.copy()
        for price, cost in zip(prices, self.cost, strict=False):
            if price:
                priced += price * cost
        for price, rule in zip(prices[len(self.cost) :], self.rules, strict=True):
            if price:
                priced[rule.item, rule.option] += price * rule.weight
        return priced

    def priced_exactly(self, loss: Ints, prices: Sequence[int], common: int, items: Ints) -> npt.NDArray[np.object_]:
        """common * loss + sum_q prices[q] a[q] for some of the items, in Python's unbounded integers."""
        priced = loss[items].astype(object) * common
        for price, cost in zip(prices, self.cost, strict=False):
            if price:
                priced = priced + cost[items].astype(object) * price
        place = np.full(self.cost.shape[1], -1)
        place[items] = np.arange(len(items))
        for price, rule in zip(prices[len(self.cost) :], self.rules, strict=True):
            among = place[rule.item] >= 0
            if price and among.any():
                priced[place[rule.item[among]], rule.option[among]] += rule.weight[among].astype(object) * price
        return priced

    def restricted(self, among: Ints, choice: Ints) -> Rows:
        """The rows over the items `among` alone, their bounds less what the other items of `choice` (n,) add up to."""
        place = np.full(self.cost.shape[1], -1)
        place[among] = np.arange(len(among))
        cost = self.cost[:, among]
        spent = self.cost[:, np.arange(len(choice)), choice].sum(axis=1) - cost[:, np.arange(len(among)), choice[among]].sum(
            axis=1
        )
        rules, taken = [], spent.tolist()
        for rule in self.rules:
            inside = place[rule.item] >= 0
            taken.append(rule.total(choice) - int(rule.weight[inside & (choice[rule.item] == rule.option)].sum()))
            item, option, weight = place[rule.item[inside]], rule.option[inside], rule.weight[inside]
            if not len(item):  # a rule about others alone still holds or breaks: it keeps a pair that weighs nothing
                item, option, weight = (np.zeros(1, dtype=np.int64) for _ in range(3))
            rules.append(replace(rule, item=item, option=option, weight=weight))
        least = np.where(self.least == -FREE, -FREE, self.least - taken)
        return Rows(cost, tuple(rules), least, np.where(self.most == FREE, FREE, self.most - taken))

    def edges(self, multipliers: Sequence[Fraction]) -> list[int]:
        """The bound of each row that its multiplier prices: `most` where positive, `least` where negative, 0 where zero.

        Raises ValueError when a multiplier prices a side that is not bounded.
        """
        edges = []
        for row, multiplier in enumerate(multipliers):
            edge = 0 if multiplier == 0 else int(self.most[row] if multiplier > 0 else self.least[row])
            if abs(edge) == FREE:
                side = "above" if multiplier > 0 else "below"
                raise ValueError(f"{self.name(row)} is not bounded {side}, so its multiplier cannot be {multiplier}")
            edges.append(edge)
        return edges

    def name(self, row: int) -> str:
        """What messages call a row."""
        return f"resource {row}" if row < len(self.cost) else f"the rule {self.rules[row - len(self.cost)].name!r}"

    def broken(self, choice: Ints) -> list[str]:
        """A sentence for each row that a choice (n,) breaks."""
        found = []
        for row, total in enumerate(self.totals(choice).tolist()):
            if total > self.most[row]:
                found.append(f"{self.name(row)} is {total}, more than {self.most[row]}")
            elif total < self.least[row]:
                found.append(f"{self.name(row)} is {total}, less than {self.least[row]}")
        return found
