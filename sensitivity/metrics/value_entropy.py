"""value_entropy: QuantMCU's score, the entropy that a unit's output loses when it is quantized to the format's bits.

The numbers of a unit's output y = W x (+ bias) are sorted into 2^b bins of equal width between the least and the greatest
of them. With H_b the entropy of the shares, and C the unit's operations (multiplications),

    Omega(b) = (H_full - H_b) / H_full        Phi(b) = (BitOPs_full - BitOPs_b) / BitOPs_full,  BitOPs_b = C b_w b_a
    S(b) = -lambda Omega(b) + (1 - lambda) Phi(b)                       QuantMCU's score; it takes the b of the highest
    loss(b) = C Omega(b) / predictions                                  here: a budget limits the bits and takes the part of Phi

Each unit's Phi is relative to its own operations: weighed by them, the sum of losses under a budget of operations has for
its Lagrangian the sum of C S. QuantMCU quantizes the output itself, between 2, 4 and 8 bits, and takes 8 for full. So would
8-bit formats cost nothing, and no plan could tell them from the untouched weights: full is one bit more here. Formats of one
number of bits are all the same to this score, and float formats lose nothing. Normalisation is inferred; the system
(mixed-precision patch-based inference for microcontrollers) was read in summary only. Bins nest, so fewer bits never gain.

A lookup counts as the product with one-hot vectors that it stands for. The range is a batch's own, and of an output with
more than 4 million numbers rows are taken, evenly spaced.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.formats import FORMATS
from ..estimate import empty_table, measured_pairs
from ..flow import Flow, Passage, estimate_flow
from ..probe import Rows, Use
from ..report import Floats
from .activation_entropy import entropy

FULL = 9  # bits of the histogram that stands for the untouched output
MOST_NUMBERS = 1 << 22


def sums(passage: Passage) -> Floats:
    """Operations times Omega for one batch, (units, formats), added over the uses of a unit."""
    position = {unit.name: u for u, unit in enumerate(passage.units)}
    table = empty_table(passage.units, passage.formats)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        module = passage.network.module.get_submodule(use.module)
        weight = module.get_parameter("weight").flatten(1)
        bias = getattr(module, "bias", None)
        output = _output(rows, weight)
        entropies = bits_entropies(output if bias is None or rows.one_hot else output + bias)
        operations = float(_count(rows)) * weight.numel()
        for f, fmt in measured_pairs(use.unit, passage.formats):
            if FORMATS[fmt].family == "int":
                table[position[use.unit.name], f] += operations * lost(entropies, FORMATS[fmt].bits)

    passage.drive(visit)
    return table


def bits_entropies(values: Tensor, full: int = FULL) -> Floats:
    """H_b of `values` for b = 0, 1, ..., full, in bits."""
    numbers = values.float().flatten()
    if not len(numbers):  # an expert that was given masked tokens only
        return np.zeros(full + 1)
    counts = torch.histc(numbers, 1 << full).cpu().double().numpy()  # between their least and greatest
    return np.array([entropy(counts.reshape(1 << b, -1).sum(axis=1)) for b in range(full + 1)])


def lost(entropies: Floats, bits: int) -> float:
    """Omega: the share of the full entropy (the last of `entropies`) that is lost at `bits`.

    >>> lost(np.array([0.0, 1.0, 2.0]), 1)
    0.5
    """
    full = float(entropies[-1])
    return (full - float(entropies[bits])) / full if full > 0 else 0.0


def score(omega: float, phi: float, weight: float = 0.5) -> float:
    """QuantMCU's S = -weight * Omega + (1 - weight) * Phi; the higher the better.

    >>> score(0.5, 0.75)
    0.125
    """
    return -weight * omega + (1 - weight) * phi


def saved(bits_weight: float, bits_input: float, full: int = 8) -> float:
    """Phi: the share of a unit's bit operations that is saved against `full` bits for both operands.

    >>> saved(4, 8)
    0.5
    """
    return 1 - bits_weight * bits_input / full**2


def _count(rows: Rows) -> int:
    return len(rows.x) if rows.one_hot else rows.x.shape[1]


def _output(rows: Rows, weight: Tensor) -> Tensor:
    """W x, (rows, out), for all rows or as many, evenly spaced, as keep it within MOST_NUMBERS."""
    width = weight.shape[1] if rows.one_hot else weight.shape[0]
    some = torch.linspace(0, _count(rows) - 1, min(_count(rows), max(1, MOST_NUMBERS // width))).long().to(rows.x.device)
    if rows.one_hot:
        return weight[rows.x[some]]
    return (rows.x[:, some] @ weight.view(len(rows.x), -1, weight.shape[1]).transpose(1, 2)).transpose(0, 1).flatten(1)


FLOW = Flow(sums, quantity="operations a prediction times share of entropy lost")
estimate = partial(estimate_flow, FLOW)
