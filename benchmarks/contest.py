"""Plans of equal bytes for the tournament: choice problems with ties, the rivals, and a network with some units rounded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bitplan.allocator.targets import vllm
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.units import Unit
from bitplan.solvers import SOLVERS
from bitplan.solvers.problem import ChoiceProblem
from bitplan.solvers.uniform import layer_order_fill, single_format

Ints = npt.NDArray[np.int64]
PALETTE = tuple(f"int{bits}-g64-asym" for bits in (2, 3, 4, 5, 6, 8))
SIZES = (2.5, 3.0, 3.5, 4.25)  # stored bits a weight
TIES = ("none", "vllm")
RANDOM_PLANS = 3


@dataclass(frozen=True, eq=False)
class Contest:
    """A network with its renderings; what plans may touch is `free`."""

    network: Network
    renderings: Renderings

    @cached_property
    def free(self) -> list[Unit]:
        units = self.network.inventory.units
        first = next((unit.name for unit in units if unit.kind == "conv"), None)
        return [unit for unit in units if unit.role not in ("embedding", "head") and unit.name != first]

    def groups(self, tie: str) -> list[list[Unit]]:
        """Units that share a format."""
        found: dict[str, list[Unit]] = {}
        for unit in self.free:
            found.setdefault((vllm.tie(unit) if tie == "vllm" else None) or unit.name, []).append(unit)
        return list(found.values())

    def limit(self, size: float) -> int:
        """Bytes that `size` stored bits a weight come to."""
        return int(size * sum(unit.parameters for unit in self.free) / 8)

    def problem(self, report: SensitivityReport, tie: str, size: float) -> ChoiceProblem:
        row = {name: u for u, name in enumerate(report.units)}
        columns = [report.formats.index(fmt) for fmt in PALETTE]
        groups = self.groups(tie)
        loss = np.array([report.loss[[row[unit.name] for unit in units]][:, columns].sum(axis=0) for units in groups])
        cost = np.array([[sum(unit.stored_bytes(FORMATS[fmt]) for unit in units) for fmt in PALETTE] for units in groups])
        return ChoiceProblem(loss, cost[None], np.array([self.limit(size)]), np.ones(loss.shape, dtype=bool))

    def assignment(self, problem: ChoiceProblem, choice: Ints, tie: str) -> dict[str, str]:
        return {unit.name: PALETTE[j] for units, j in zip(self.groups(tie), choice.tolist(), strict=True) for unit in units}

    @contextmanager
    def rounded(self, assignment: dict[str, str]) -> Iterator[None]:
        """While open, the named units hold the numbers of their formats; afterwards their own."""
        units = [unit for unit in self.network.inventory.units if unit.name in assignment]
        kept = {unit.name: [weight.clone() for weight in unit_weights(self.network.module, unit)] for unit in units}
        try:
            for unit in units:
                made = self.renderings(unit, assignment[unit.name])
                for weight, rendered in zip(unit_weights(self.network.module, unit), made, strict=True):
                    weight.copy_(rendered_transposed(rendered).T)
            yield
        finally:
            for unit in units:
                for weight, old in zip(unit_weights(self.network.module, unit), kept[unit.name], strict=True):
                    weight.copy_(old)


def plan_of(problem: ChoiceProblem) -> Ints:
    """The best choice by the losses of `problem`."""
    choice = SOLVERS["best"](problem).choice
    assert choice is not None
    return choice


def rivals(contest: Contest, problem: ChoiceProblem, tie: str) -> dict[str, Ints]:
    """Plans of the same bytes that ask no metric."""
    found: dict[str, Ints] = {}
    for name, choice in (("uniform", single_format(problem)), ("uniform, filled", layer_order_fill(problem))):
        if choice is not None:
            found[name] = choice
    found["position rule"] = _promoted(problem, _by_position(contest, tie))
    for seed in range(RANDOM_PLANS):
        order = list(range(problem.items))
        random.Random(seed).shuffle(order)
        found[f"random {seed}"] = _promoted(problem, order)
    return found


def _by_position(contest: Contest, tie: str) -> list[int]:
    """llama.cpp's rule: v and down of the first and last eighth of the layers and of every third between come first, then
    the other v and down, then the rest in order."""
    layers = max((unit.layer or 0 for unit in contest.free), default=0) + 1
    eighth = layers // 8

    def rank(units: list[Unit]) -> tuple[int, int]:
        layer = units[0].layer or 0
        marked = any(unit.role in ("v", "down", "qkv") for unit in units)
        more = layer < eighth or layer >= layers - eighth or (layer - eighth) % 3 == 2
        return (0 if marked and more else 1 if marked else 2), layer

    groups = contest.groups(tie)
    return sorted(range(len(groups)), key=lambda i: rank(groups[i]))


def _promoted(problem: ChoiceProblem, order: list[int]) -> Ints:
    """The widest single format that fits, then one step more for one item after another in `order` while it fits."""
    cost, limit = problem.cost[0], int(problem.limit[0])
    base = max(j for j in range(cost.shape[1]) if j == 0 or int(cost[:, j].sum()) <= limit)
    choice = np.full(problem.items, base, dtype=np.int64)
    left = limit - int(cost[:, base].sum())
    for _ in range(cost.shape[1]):
        for i in order:
            j = int(choice[i])
            if j + 1 < cost.shape[1] and int(cost[i, j + 1] - cost[i, j]) <= left:
                left -= int(cost[i, j + 1] - cost[i, j])
                choice[i] = j + 1
    return choice


def names_of(document: dict[str, Any]) -> list[str]:
    """Every contestant that has at least one measured plan."""
    return list(dict.fromkeys(name for cell in document["plans"].values() for name in cell["entries"]))
