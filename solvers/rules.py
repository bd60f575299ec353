"""Rules: what must hold between the choices of several items, beside the limits of the resources.

    least <= sum_k weight[k] * [choice[item[k]] = option[k]] <= most

Counting (how many items of a set take an option of a set), balancing (as many up as down) and forbidding (two options that
may not occur together) are all of this form, so a solver or a certificate that knows it knows them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Ints


@dataclass(frozen=True, eq=False)
class Rule:
    """The line at the top of this file. `item`, `option`, `weight` (k,) whole numbers, each pair (item, option) once.

    `least` and `most` bound the sum, at least one of them. `name` is what messages call the rule.

    Raises ValueError, naming the rule, when that is not so.
    """

    name: str
    item: Ints
    option: Ints
    weight: Ints
    least: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        for name in ("item", "option", "weight"):
            given: npt.NDArray[Any] = np.asarray(getattr(self, name))
            if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
                raise ValueError(f"rule {self.name!r}: {name} must be a list of whole numbers, not {given.dtype} {given.shape}")
            table = given.astype(np.int64)
            table.setflags(write=False)
            object.__setattr__(self, name, table)
        if not 0 < len(self.item) == len(self.option) == len(self.weight):
            raise ValueError(f"rule {self.name!r}: item, option and weight must have one length, at least 1")
        pairs = set(zip(self.item.tolist(), self.option.tolist(), strict=True))
        if len(pairs) < len(self.item):
            raise ValueError(f"rule {self.name!r} names a pair of item and option twice; add up their weights instead")
        if self.least is None and self.most is None:
            raise ValueError(f"rule {self.name!r} bounds nothing; give it `least` or `most`")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"rule {self.name!r} contradicts itself: at least {self.least} and at most {self.most}")

    def total(self, choice: Ints) -> int:
        """The sum that the rule bounds, for a choice (n,)."""
        return int(self.weight[choice[self.item] == self.option].sum())

    def kept(self, choice: Ints) -> bool:
        """Whether a choice (n,) keeps the rule."""
        total = self.total(choice)
        return (self.least is None or total >= self.least) and (self.most is None or total <= self.most)


def count(
    items: Iterable[int],
    options: Iterable[int],
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    exactly: int | None = None,
    name: str = "",
) -> Rule:
    """How many of `items` may take one of `options`: at least, at most or exactly so many."""
    if exactly is not None:
        if at_least is not None or at_most is not None:
            raise ValueError("`exactly` says it all; leave out at_least and at_most")
        at_least = at_most = exactly
    members, taken = sorted(set(items)), sorted(set(options))
    wanted = [f"at least {at_least}"] * (at_least is not None) + [f"at most {at_most}"] * (at_most is not None)
    name = name or f"{' and '.join(wanted)} of {len(members)} items on the options {taken}"
    pairs = [(item, option) for item in members for option in taken]
    return _rule(name, pairs, [1] * len(pairs), at_least, at_most)


def balance(items: Iterable[int], up: Iterable[int], down: Iterable[int], *, name: str = "") -> Rule:
    """As many of `items` on the options `up` as on the options `down`."""
    members, signs = sorted(set(items)), [(option, 1) for option in set(up)] + [(option, -1) for option in set(down)]
    name = name or f"as many of {len(members)} items on {sorted(set(up))} as on {sorted(set(down))}"
    pairs = [(item, option) for item in members for option, _ in signs]
    return _rule(name, pairs, [sign for _ in members for _, sign in signs], 0, 0)


def forbid(first: tuple[int, int], second: tuple[int, int], *, name: str = "") -> Rule:
    """Two pairs (item, option) that may not both be chosen."""
    name = name or f"item {first[0]} on option {first[1]} excludes item {second[0]} on option {second[1]}"
    return _rule(name, [first, second], [1, 1], None, 1)


def _rule(name: str, pairs: Sequence[tuple[int, int]], weights: Sequence[int], least: int | None, most: int | None) -> Rule:
    item, option = (np.array(column, dtype=np.int64) for column in (zip(*pairs, strict=True) if pairs else ((), ())))
    return Rule(name, item, option, np.array(weights, dtype=np.int64), least, most)
