"""Experts unstacked: one pair of ordinary linear modules for each expert.

transformers keeps the experts of a layer as stacked 3-D parameters, `gate_up_proj` (E, 2 * inner, hidden) and `down_proj`
(E, hidden, inner), which no module-wise tool can measure or quantize one by one. `unstack` puts in their place a module
with the same inputs and the same arithmetic whose experts are modules, `experts.7.gate_up_proj` and `experts.7.down_proj`,
so that an expert is a unit like any other. The variations are those that transformers itself declares on the class:
transposed storage, biases, no gate, and the class's own gate function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """One expert: an up projection (with the gate stacked on it, where there is one) and a down projection.

    After a forward pass `positions` says which of the `total` rows the expert was given.
    """

    positions: Tensor
    total: int

    def __init__(self, up_name: str, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.up_name = up_name
        self.add_module(up_name, up)
        self.down_proj = down


class Experts(nn.Module):
    """y_t = sum over the experts e chosen for token t of weight_te * down_e(act(gate_up_e(x_t))).

    Called as transformers calls its experts: hidden states (T, hidden), chosen experts (T, k), their weights (T, k).
    """

    def __init__(self, stacked: nn.Module) -> None:
        super().__init__()
        up_name = "gate_up_proj" if stacked.has_gate else "up_proj"
        ups, downs = (_matrices(stacked, name) for name in (up_name, "down_proj"))
        # What lies between the two products is the class's own method and reads its settings (a limit, a slope) from the
        # instance: the instance is kept, hollow, in a list, so that it is no submodule.
        self._stacked: list[Any] = [stacked]
        self.up_name, self.has_gate = up_name, bool(stacked.has_gate)
        self.experts = nn.ModuleDict(
            {str(i): Expert(up_name, up, down) for i, (up, down) in enumerate(zip(ups, downs, strict=True))}
        )

    @property
    def between(self) -> Callable[[Tensor], Tensor]:
        """What lies between the two products."""
        between: Callable[[Tensor], Tensor] = self._stacked[0]._apply_gate if self.has_gate else self._stacked[0].act_fn
        return between

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden)
        for index, expert in self.experts.items():
            assert isinstance(expert, Expert)
            token, slot = torch.where(chosen == int(index))
            if token.numel() == 0:
                continue
            expert.positions, expert.total = token, len(hidden)
            inner = self.between(expert.get_submodule(expert.up_name)(hidden[token]))
            result = result.index_add(0, token, (expert.down_proj(inner) * weights[token, slot, None]).to(result.dtype))
        return result


def unstack(model: nn.Module) -> nn.Module:
    """Replace every stacked experts module of `model` in place; the parameters are the same storage. Returns `model`."""
    for name, module in list(model.named_modules()):
        if is_stacked(module):
            experts = Experts(module)
            for parameter in list(module._parameters):
                del module._parameters[parameter]
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, experts)
    return model


def is_stacked(module: nn.Module) -> bool:
    """Whether `module` holds experts as transformers' stacked parameters, and nothing else that could be lost."""
    down = getattr(module, "down_proj", None)
    declared = hasattr(module, "has_gate") and hasattr(module, "is_transposed")
    names = {name.removesuffix("_bias") for name, _ in module.named_parameters()}
    return isinstance(down, nn.Parameter) and down.dim() == 3 and declared and names <= {"gate_up_proj", "up_proj", "down_proj"}


def _matrices(stacked: nn.Module, name: str) -> Iterator[nn.Linear]:
    weights = stacked.get_parameter(name)
    biases = getattr(stacked, f"{name}_bias", None)
    for index in range(weights.shape[0]):
        weight = weights.data[index].T.contiguous() if stacked.is_transposed else weights.data[index]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=biases is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if biases is not None:
            linear.bias = nn.Parameter(biases.data[index], requires_grad=False)
        yield linear
