"""slim: SliM-LLM's salience of groups of columns, each times the relative error that the format makes in it.

    s_ij = w_ij^2 / d_j^2        S_k = sum_i sum_{j in group k} s_ij        loss = 1/N sum_k S_k ||dW_k||^2 / ||W_k||^2

over groups k of 128 consecutive inputs, shared by all outputs; d_j = U_jj with H^-1 = U^T U, so s_ij is the loss of removing
the weight (SliM-LLM, arXiv 2405.14917, after optimal brain surgeon). SliM-LLM moves bits between the groups of one layer by
rank of S_k and never compares layers; taking the relative error of a format for the share of a group's salience that is lost
is the inference made here. d_j has the order and the damping of our own GPTQ (SliM-LLM: natural order, 1 %).

`group_plan` and `output_divergence` are what its search within a layer is made of: the one-dimensional family of plans, and
the divergence by which one of them is chosen. No plan of ours mixes widths inside a unit, so the metric needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...kernels.float64 import as_float64
from ..column_error import column_errors
from ..render import Rendered
from ..unexplained import by_those_open, estimate_unexplained

GROUP = 128


def element_salience(weight: Tensor, diagonal: Tensor) -> Tensor:
    """s_ij of `weight` (out, in) with d_j in `diagonal` (in,)."""
    return (weight / diagonal).square()


def group_salience(salience: Tensor, size: int = GROUP) -> Tensor:
    """S_k (groups,) of the elements' `salience` (out, in); the last group may be a short one."""
    return torch.stack([salience[:, start : start + size].sum() for start in range(0, salience.shape[1], size)])


def group_plan(salience: Sequence[float], width: int, moved: int) -> list[int]:
    """Bits of each group: the `moved` least salient have one bit less than `width`, the `moved` most salient one more.

    >>> group_plan([5, 40, 1, 7, 300, 12, 2, 60], 2, 2)
    [2, 2, 1, 2, 3, 2, 1, 3]
    """
    order = sorted(range(len(salience)), key=salience.__getitem__)
    plan = [width] * len(salience)
    for low, high in zip(order[:moved], order[::-1][:moved], strict=True):
        plan[low], plan[high] = width - 1, width + 1
    return plan


def output_divergence(quantized: Tensor, original: Tensor) -> float:
    """Mean over rows of KL(softmax(quantized) || softmax(original)), the softmax over a layer's own outputs (rows, out) and
    probabilities no less than 1e-6: in this direction, the reverse of the usual one."""
    p, q = (as_float64(outputs).softmax(-1).clamp(min=1e-6) for outputs in (quantized, original))
    return float((p * (p.log() - q.log())).sum(-1).mean())


def salient_errors(made: Rendered, weight: Tensor, parts: int) -> Tensor:
    """sum_i w_ij^2 times the relative error of column j's group, float64 (parts, in)."""
    errors = column_errors(made, weight, parts)
    energy = as_float64(weight).square().view(parts, -1, weight.shape[1]).sum(dim=1)
    result = torch.zeros_like(energy)
    for start in range(0, weight.shape[1], GROUP):
        group = slice(start, start + GROUP)
        total = energy[:, group].sum(dim=1, keepdim=True)
        relative = errors[:, group].sum(dim=1, keepdim=True) / total
        result[:, group] = torch.where(total > 0, energy[:, group] * relative, 0.0)
    return result


QUANTITY = "salience times relative error, summed over groups of columns"
estimate = partial(estimate_unexplained, by_those_open, salient_errors, QUANTITY)
