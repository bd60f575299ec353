"""Slow second opinions for estimators that look at gradients: plain autograd, one thing at a time.

renderings(home, network, formats)     every unit rounded to nearest
Moved(network, changes)                renderings that are made up: W + change
changes(network, made, unit, fmt)      dW of every matrix of a unit, float64 (out, in)
seen(network, batch, scalar)           what every use received and the gradient of `scalar(output)` at what it gave
rows(one)                              the same as rows (x, g), float64: row r's gradient by the (out, in) weight is g_r x_r^T
by_weight(network, scalars)            the gradient of each scalar by every weight, float64
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitplan.sensitivity.network import Batch, Network, run
from bitplan.sensitivity.probe import Use, uses
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.units import Unit


def renderings(home: Path, network: Network, formats: Sequence[str]) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in formats])
    return made


class Moved:
    """`changes` gives dW of the matrices of a unit by its name; units that are not named keep their weights."""

    part = None

    def __init__(self, network: Network, changes: Mapping[str, Sequence[Tensor]]) -> None:
        self.network, self.changes = network, changes

    def __call__(self, unit: Unit, fmt: str) -> tuple[Tensor, ...]:
        weights = unit_weights(self.network.module, unit)
        moves = self.changes.get(unit.name, [torch.zeros_like(weight) for weight in weights])
        return tuple(weight + move for weight, move in zip(weights, moves, strict=True))


def changes(network: Network, made: Any, unit: Unit, fmt: str) -> list[Tensor]:
    pairs = zip(unit_weights(network.module, unit), made(unit, fmt), strict=True)
    return [(rendered_transposed(rendered).T - weight).double() for weight, rendered in pairs]


@dataclass(frozen=True, eq=False)
class Seen:
    use: Use
    module: nn.Module
    received: Tensor
    gradient: Tensor


def seen(network: Network, batch: Batch, scalar: Callable[[Tensor], Tensor]) -> list[Seen]:
    passed: list[tuple[Use, nn.Module, Tensor, Tensor]] = []

    def make_hook(use: Use) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            output.retain_grad()
            passed.append((use, module, inputs[0].detach(), output))
            return output.clone()

        return hook

    places = uses(network, network.inventory.units)
    handles = [network.module.get_submodule(use.module).register_forward_hook(make_hook(use)) for use in places]
    scalar(run(network, batch)).backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    result = []
    for use, module, received, output in passed:
        if output.grad is not None:
            result.append(Seen(use, module, received, output.grad))
    return result


def rows(one: Seen) -> tuple[Tensor, Tensor]:
    if isinstance(one.module, nn.Embedding):
        return one.gradient.flatten(0, -2).double(), functional.one_hot(
            one.received.flatten(), one.module.num_embeddings
        ).double()
    if isinstance(one.module, nn.Conv2d):
        assert one.module.groups == 1
        assert not isinstance(one.module.padding, str)
        conv = one.module
        patches = functional.unfold(one.received, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
        g = one.gradient.flatten(2).transpose(1, 2).flatten(0, 1)
        return patches.transpose(1, 2).flatten(0, 1).double(), g.double()
    return one.received.flatten(0, -2).double(), one.gradient.flatten(0, -2).double()


def by_weight(network: Network, scalars: Callable[[], Sequence[Tensor]]) -> list[dict[str, Tensor]]:
    names = [f"{m.module}.weight" for unit in network.inventory.units for m in unit.matrices]
    weights = [network.module.get_parameter(name).requires_grad_() for name in names]
    found = []
    for one in scalars():
        gradients = torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True)
        pairs = zip(names, weights, gradients, strict=True)
        found.append({n: (torch.zeros_like(w) if g is None else g).flatten(1).double() for n, w, g in pairs})
    network.module.requires_grad_(False)
    return found
