"""Squared gradients by weight: the diagonal of the Fisher information, one batch of rows at a time.

The gradient of row r by the weight is g_r x_r^T, so its squares need no gradient by the weight at all:

    by token      sum_r (g_ri x_rj)^2 = ((g^2)^T (x^2))_ij
    by example    sum over examples of (sum over the example's rows of g_ri x_rj)^2

Rows of different uses of a weight, and of different passes through one use, are squared apart: a tied head and its embedding
lose their cross term.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.float64 import sum64
from .probe import Rows


def squared_gradients(rows: Rows, g: Tensor, examples: int | None) -> Tensor:
    """(parts, in, out_per_part) by token, or by example when the number of `examples` is given."""
    if examples is None:
        return rows.x.square().transpose(1, 2) @ g.square()
    total = torch.zeros(len(g), rows.x.shape[2], g.shape[2], device=g.device)
    for example in range(examples):
        mine = rows.example == example
        total += (rows.x[:, mine].transpose(1, 2) @ g[:, mine]).square()
    return total


def squared_lookup_gradients(rows: Rows, g: Tensor, examples: int | None) -> tuple[Tensor, Tensor]:
    """The same for an embedding lookup, whose gradient is g_r in row id_r: (ids, squares (ids, width))."""
    if examples is None:
        return rows.x, g[0].square()
    vocabulary = int(rows.x.max()) + 1 if len(rows.x) else 1
    keys, place = torch.unique(rows.example * vocabulary + rows.x, return_inverse=True)  # a word twice in an example adds up
    summed = torch.zeros(len(keys), g.shape[2], device=g.device).index_add_(0, place, g[0])
    return keys % vocabulary, summed.square()


def trace(rows: Rows, g: Tensor, examples: int | None) -> float:
    """The sum of all squared gradients; by token that is sum_r |g_r|^2 |x_r|^2."""
    if rows.one_hot:
        squares = squared_lookup_gradients(rows, g, examples)[1]
    elif examples is None:
        squares = rows.x.square().sum(dim=2) * g.square().sum(dim=2)
    else:
        squares = squared_gradients(rows, g, examples)
    return float(sum64(squares))


def examples_of(outputs: str, examples: int) -> int | None:
    """Models that predict tokens are squared by token (None), those with one output an example by example."""
    return None if outputs == "tokens" else examples
