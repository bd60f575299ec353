"""Allocations that others published with their tables, all of them; single instances stand in `problems.py`.

MC-MoE (arXiv 2410.06270) gives the experts of each of 32 blocks of Mixtral 8x7B 1, 2 or 3 bits: least sum of
n w^1.5 eps(b), n the tokens an expert saw and w the weight its router gave it, within a sum of bits, at least one expert
of each block at 3 bits and one at 2 (the exponents are those of the released code). A floor on a count is a ceiling on the
others: two further resources.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, ChoiceProblem, brute_force, recompute

pytestmark = pytest.mark.shared

BUDGETS = range(12, 21)
WIDTHS = np.array([1, 2, 3])


@pytest.fixture(scope="module")
def tables(shared: Path) -> dict[str, Any]:
    path = shared / "allocations" / "mixture_compressor_mixtral.json"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert document["layers"] == len(document["activation_count"]) == 32
    return document


def block(tables: dict[str, Any], layer: int, budget: int) -> ChoiceProblem:
    count, weight = (np.array(tables[name][layer]) for name in ("activation_count", "routing_weight_sum"))
    error = np.array(tables["reconstruction_error"][layer])  # (experts, widths)
    loss = (count / count.sum())[:, None] * (weight / weight.sum())[:, None] ** 1.5 * error
    bits = np.broadcast_to(WIDTHS, loss.shape)
    cost = np.stack([bits, bits != 3, bits != 2]).astype(np.int64)
    experts = len(loss)
    return ChoiceProblem(loss, cost, np.array([budget, experts - 1, experts - 1]), np.ones(loss.shape, dtype=np.bool_))


def published(tables: dict[str, Any], layer: int, budget: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    bits = np.array(tables["published_allocation_by_total_bits_per_layer"][str(budget)][layer])
    return np.searchsorted(WIDTHS, bits)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_published_allocation_is_the_least_of_all(budget: int, tables: dict[str, Any]) -> None:
    for layer in range(tables["layers"]):
        best = brute_force(block(tables, layer, budget)).choice
        assert best is not None
        assert best.tolist() == published(tables, layer, budget).tolist(), f"layer {layer}"


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_solver_stays_within_its_certificate_of_the_published_loss(budget: int, tables: dict[str, Any]) -> None:
    """Several resources have no exact solver yet: what it finds may be worse, by no more than its certificate's gap."""
    for layer in range(tables["layers"]):
        problem = block(tables, layer, budget)
        loss, _ = recompute(problem, published(tables, layer, budget))
        solution = SOLVERS["best"](problem)
        assert solution.choice is not None
        assert solution.certificate is not None
        bound = float(solution.certificate.lower_bound / solution.certificate.loss_scale)
        assert bound <= loss * (1 + 1e-12)
        assert loss * (1 - 1e-12) <= solution.loss
