"""Gradients by the weights themselves. Weights are frozen (`plain.py`) and need a gradient only while one is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .network import Network


@contextmanager
def differentiable(network: Network) -> Iterator[list[list[nn.Parameter]]]:
    """While open, autograd is on and the units' weights, given matrix by matrix for each unit, ask for gradients."""
    weights = [[network.module.get_parameter(f"{m.module}.weight") for m in unit.matrices] for unit in network.inventory.units]
    before = [(weight, weight.requires_grad) for mine in weights for weight in mine]
    try:
        for weight, _ in before:
            weight.requires_grad_()
        with torch.enable_grad():
            yield weights
    finally:
        for weight, asked in before:
            weight.requires_grad_(asked)
