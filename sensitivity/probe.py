"""What flows through each unit: the inputs of its matrices and the gradients at their outputs, as rows.

A *use* is one module that multiplies by one matrix of one unit (a tied head is a second use of the embedding). Whatever
the module is, its work is brought to the form y_r = W x_r over rows r:

    linear       a row is a token (or an example, after pooling); an expert sees the rows routed to it
    conv         a row is a position of the output, x_r its patch; grouped convolutions split into `parts`
    embedding    a row is a token, x_r is one-hot: only the ids are kept

so that a metric is a formula over (x_r, g_r) and never asks what kind of module it looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .experts import Expert
from .network import Batch, Network
from .units import Unit


@dataclass(frozen=True)
class Use:
    """One module that multiplies by matrix `matrix` of `unit`."""

    unit: Unit
    matrix: int
    module: str


@dataclass(frozen=True, eq=False)
class Rows:
    """`x` (parts, R, in_per_part), or the R ids of an embedding lookup; `example` (R,) says whose rows they are, `position`
    (R,) which they are among all rows of the batch, of which padding and other experts have some;
    `source` is the very tensor the module received: modules fed the same tensor share it."""

    x: Tensor
    example: Tensor
    position: Tensor
    keep: Tensor | None
    source: Tensor
    conv: bool

    @property
    def one_hot(self) -> bool:
        return not self.x.is_floating_point()

    def gradient(self, output_gradient: Tensor, parts: int) -> Tensor:
        """g as (parts, R, out_per_part), rows in the order of `x`."""
        flat = output_gradient.flatten(2).transpose(1, 2).flatten(0, 1) if self.conv else output_gradient.flatten(0, -2)
        if self.keep is not None:
            flat = flat[self.keep]
        return flat.view(len(flat), parts, -1).transpose(0, 1)


def uses(network: Network, units: Sequence[Unit]) -> list[Use]:
    """Every use of every matrix of `units`."""
    return [
        Use(unit, index, path)
        for unit in units
        for index, matrix in enumerate(unit.matrices)
        for path in (matrix.module, *(unit.shared_with if index == 0 else ()))
    ]


@contextmanager
def watch_inputs(network: Network, batch: Batch, units: Sequence[Unit], visit: Callable[[Use, Rows], None]) -> Iterator[None]:
    """While open, call `visit` at every forward pass through a use."""

    def make_hook(use: Use) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                visit(use, _rows(network, batch, use, module, inputs[0]))

        return hook

    with _hooked(network, units, make_hook):
        yield


@contextmanager
def watch_gradients(
    network: Network, batch: Batch, units: Sequence[Unit], visit: Callable[[Use, Rows, Tensor], None]
) -> Iterator[None]:
    """While open, call `visit(use, rows, g)` for every use when a backward pass reaches its output.

    Weights are frozen, so the graph starts at the first unit's output, which is made a leaf.
    """

    def make_hook(use: Use) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = _rows(network, batch, use, module, inputs[0].detach())
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()  # a clone: what follows may change it in place
            parts = getattr(module, "groups", 1)

            def on_gradient(gradient: Tensor) -> None:
                with torch.no_grad():
                    visit(use, rows, rows.gradient(gradient, parts))

            output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
            return output

        return hook

    with torch.enable_grad(), _hooked(network, units, make_hook):
        yield


@contextmanager
def _hooked(network: Network, units: Sequence[Unit], make_hook: Callable[[Use], Callable[..., Tensor | None]]) -> Iterator[None]:
    handles = [network.module.get_submodule(use.module).register_forward_hook(make_hook(use)) for use in uses(network, units)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(network: Network, batch: Batch, use: Use, module: nn.Module, received: Tensor) -> Rows:
    examples, device = len(next(iter(batch.values()))), received.device
    if isinstance(module, nn.Conv2d):
        padded = functional.pad(received, module._reversed_padding_repeated_twice)
        patches = functional.unfold(padded, module.kernel_size, module.dilation, 0, module.stride)  # (B, in * kh * kw, L)
        count = patches.shape[2]
        x = patches.transpose(1, 2).flatten(0, 1)
        x = x.view(len(x), module.groups, -1).transpose(0, 1)
        position = torch.arange(examples * count, device=device)
        return Rows(x, position // count, position, None, received, conv=True)
    owner = network.module.get_submodule(use.module.rpartition(".")[0]) if "." in use.module else None
    flat = received.flatten() if isinstance(module, nn.Embedding) else received.flatten(0, -2)
    position = torch.arange(len(flat), device=device)
    total = len(flat)
    if isinstance(owner, Expert):
        position, total = owner.positions, owner.total
    keep = None
    mask = batch.get("attention_mask")
    if mask is not None and mask.numel() == total:
        keep = mask.flatten().bool()[position]
        flat, position = flat[keep], position[keep]
    example = position // max(1, total // examples)
    return Rows(flat if isinstance(module, nn.Embedding) else flat[None], example, position, keep, received, conv=False)
