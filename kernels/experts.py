"""The experts of a layer, packed, each in a width of its own, computed in two products for all of them.

    y_t = sum over the experts e chosen for token t of weight_te * down_e(between(up_e(x_t)))

The matrices of all experts lie in one buffer, and a launch serves every expert (`moe_matmul`). The modules of single
experts stay where they were, at `experts.7.down_proj`, and share that buffer, so that names, storing and checking are as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .linear import QuantizedLinear
from .mixed import ExpertMixed, stack_experts
from .product import automatic, moe_matmul


class QuantizedExperts(nn.Module):
    """Called as transformers calls its experts: hidden states (T, hidden), chosen experts (T, k), their weights (T, k).

    `experts` holds one module for each expert, with QuantizedLinear children `up_name` and `down_proj`; `between` is what lies
    between the two products, (rows, up's outputs) to (rows, down's inputs). Raises ValueError where the experts' matrices
    differ in shape.
    """

    def __init__(self, experts: nn.ModuleDict, up_name: str, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.experts, self.up_name = experts, up_name
        self._between = [between]  # in a list: it may belong to a module, which is no child of this one
        self._stack()
        self.register_load_state_dict_post_hook(_stack_again)  # type: ignore[no-untyped-call]

    def _stack(self) -> None:
        self._up, self._down = _shared(self._matrices(self.up_name)), _shared(self._matrices("down_proj"))
        self._up_bias, self._down_bias = (_biases(self._matrices(name)) for name in (self.up_name, "down_proj"))

    def _matrices(self, name: str) -> list[QuantizedLinear]:
        return [expert.get_submodule(name) for expert in self.experts.values()]  # type: ignore[misc]

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Matrices that were moved apart are put together again, on their new device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._stack()
        return self

    @property
    def backend(self) -> str:
        """The name of the back end that computes the products."""
        return automatic(self._up.words.device.type)

    @property
    def stacks(self) -> dict[str, ExpertMixed]:
        """The matrices of all experts by the name that each expert has for its own."""
        return {self.up_name: self._up, "down_proj": self._down}

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        slots = chosen.shape[1]
        inner = moe_matmul(hidden, self._up, chosen)
        flat = chosen.reshape(-1)
        if self._up_bias is not None:
            inner = inner + self._up_bias[flat]
        each = moe_matmul(self._between[0](inner), self._down, flat[:, None])
        if self._down_bias is not None:
            each = each + self._down_bias[flat]
        return (each * weights.reshape(-1, 1)).view(-1, slots, each.shape[1]).sum(1).to(hidden.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.experts)} experts in {', '.join(map(str, self._up.widths))} bits, {self.backend}"


def _stack_again(layer: nn.Module, keys: object) -> None:
    """Scales and zero points that were loaded are stacked anew."""
    assert isinstance(layer, QuantizedExperts)
    layer._stack()


def _shared(matrices: Sequence[QuantizedLinear]) -> ExpertMixed:
    """The matrices in one buffer, which becomes that of their modules too."""
    stacked = stack_experts([matrix.planes for matrix in matrices])
    for index, matrix in enumerate(matrices):
        matrix.words = stacked.expert(index).words
    return stacked


def _biases(matrices: Sequence[QuantizedLinear]) -> Tensor | None:
    biases = [matrix.bias for matrix in matrices]
    if any(bias is None for bias in biases):
        return None
    return torch.stack([bias.detach() for bias in biases if bias is not None])
