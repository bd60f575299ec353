"""Blocks: the repeated layers of a network, which units each holds, and what goes in and comes out of each.

A block is the module whose path ends with the first number in a unit's path, the same number that `inventory.py` reads
layers off: `model.layers.3`, `encoder.layer.3`, `layer2.0`, or a whole stage where a network numbers its stages. Units
with no layer number (embeddings, heads, the first convolution) are in no block.

What goes through a block is seen as rows: a row is the vector of one token, or of one position of a feature map.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .network import Batch, Network
from .units import Unit

Visit = Callable[[str, Tensor, Tensor], None]  # the block's path, rows in (R, width), rows out (R', width')


def block_of(unit: Unit) -> str | None:
    """The path of the block that holds `unit`, None when it is in none."""
    match = re.match(r".*?\.\d+(?=\.)", unit.matrices[0].module)
    return None if match is None or unit.layer is None else match[0]


def blocks(units: Sequence[Unit]) -> dict[str, list[int]]:
    """The path of each block, in the order of the layers, and the positions of its units in `units`."""
    found: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        path = block_of(unit)
        if path is not None:
            found.setdefault(path, []).append(index)
    return found


@contextmanager
def watch_blocks(network: Network, batch: Batch, paths: Sequence[str], visit: Visit) -> Iterator[None]:
    """While open, call `visit(path, rows in, rows out)` at every forward pass of `batch` through one of the blocks `paths`."""

    def make_hook(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            received = _hidden((*inputs, *options.values()), path)
            given = _hidden(output if isinstance(output, tuple) else (output,), path)
            with torch.no_grad():
                visit(path, rows_of(received, batch), rows_of(given, batch))

        return hook

    handles = [network.module.get_submodule(path).register_forward_hook(make_hook(path), with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rows_of(hidden: Tensor, batch: Batch) -> Tensor:
    """The vectors of `hidden`, (R, width): of the tokens of (B, T, width) that are not masked, or of the positions of
    (B, width, height, width)."""
    if hidden.dim() == 4:
        return hidden.permute(0, 2, 3, 1).flatten(0, 2)
    rows = hidden.flatten(0, -2)
    mask = batch.get("attention_mask")
    return rows if mask is None or mask.numel() != len(rows) else rows[mask.flatten().bool()]


def _hidden(values: Sequence[Any], path: str) -> Tensor:
    """The hidden states among what a block receives or gives: the first floating tensor."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach()
    raise ValueError(f"the block {path} receives or gives no hidden states")
