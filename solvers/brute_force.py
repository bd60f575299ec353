"""Brute force: every choice is tried. The yardstick for solvers, not one of them."""

from __future__ import annotations

import math
import time

import numpy as np

from .problem import ChoiceProblem, Solution, Status, recompute, without_choice

BRUTE_FORCE_LIMIT = 2**21


def brute_force(problem: ChoiceProblem) -> Solution:
    """Try every choice, at most two million of them (ValueError beyond)."""
    started = time.perf_counter()
    options = [np.flatnonzero(row) for row in problem.allowed]
    shape = tuple(len(row) for row in options)
    if math.prod(shape) > BRUTE_FORCE_LIMIT:
        raise ValueError(f"{math.prod(shape)} choices are too many to try; use a solver from SOLVERS")
    rows = problem.rows
    loss = np.zeros(1)
    total = np.zeros((len(rows), 1), dtype=np.int64)
    tables = np.array([rows.table(row) for row in range(len(rows))])
    for item, row in enumerate(options):
        loss = np.add.outer(loss, problem.loss[item, row]).ravel()
        total = (total[:, :, None] + tables[:, item, row][:, None, :]).reshape(len(rows), -1)
    fits = (total <= rows.most[:, None]) & (total >= rows.least[:, None])
    within = fits.all(axis=0)
    if not within.any():
        smallest = []
        for resource in range(problem.resources):
            floor = total[resource] >= rows.least[resource]
            others = np.delete(fits, resource, axis=0).all(axis=0) & floor
            smallest.append(int(total[resource, others if others.any() else slice(None)].min()))
        return without_choice(problem, tuple(smallest), "brute_force", started)
    best = np.flatnonzero(within)[loss[within].argmin()]
    picks = np.unravel_index(best, shape)
    choice = np.array([row[pick] for row, pick in zip(options, picks, strict=True)], dtype=np.int64)
    least, spent = recompute(problem, choice)
    seconds = time.perf_counter() - started
    return Solution(choice, least, spent, Status.OPTIMAL, None, "brute_force", seconds, "search")
