"""Chain: a network as a shell around a row of blocks, each of which turns hidden states into hidden states.

    batch -> [shell: embeddings] -> h_0 -> block 0 -> h_1 -> ... -> block L-1 -> h_L -> [shell: last norm, head] -> output

The blocks are the children of the network's largest `nn.ModuleList`. The shell is the network's own forward pass with a
stand-in in each block's place, which notes what the block would have been given (masks and positions differ from model to
model) and hands on what it is told to; so nothing about an architecture is written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .network import Batch, Network, run
from .units import Unit


@dataclass(frozen=True, eq=False)
class Entered:
    """What block 0 is given for one batch, `hidden`, and what each block is given beside its hidden states."""

    hidden: Tensor
    given: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]


@dataclass(frozen=True, eq=False)
class Chain:
    """`blocks` are module paths in order; `units_of` the units of each of them, and of the shell under the empty path."""

    network: Network
    blocks: tuple[str, ...]
    units_of: Mapping[str, tuple[Unit, ...]]


def find_chain(network: Network) -> Chain:
    """The chain of `network`. Raises ValueError when it has no row of blocks."""
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), name, module)
        for name, module in network.module.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    if not lists or network.inventory.family == "convolutional":
        raise ValueError(
            f"model {network.inventory.model_id!r} is no row of blocks, so it cannot be streamed; leave --stream out"
        )
    _, path, row = max(lists, key=lambda found: found[0])
    blocks = tuple(f"{path}.{index}" for index in range(len(row)))
    owner = {
        unit.name: next((b for b in blocks if unit.matrices[0].module.startswith(f"{b}.")), "")
        for unit in network.inventory.units
    }
    units_of = {b: tuple(unit for unit in network.inventory.units if owner[unit.name] == b) for b in ("", *blocks)}
    return Chain(network, blocks, units_of)


def enter(chain: Chain, batch: Batch) -> Entered:
    """Run the shell up to the first block. Weights of the shell must be there, those of the blocks need not."""
    with torch.no_grad(), _standing(chain) as stands:
        with suppress(RuntimeError, IndexError):  # blocks that change the shape, or return more than hidden states: seen below
            run(chain.network, batch)
        shapes = {stand.hidden.shape if "hidden" in stand.__dict__ else None for stand in stands}
        if len(shapes) > 1 or None in shapes:
            raise ValueError(
                f"model {chain.network.inventory.model_id!r} hands more than hidden states from block to block, so it cannot be "
                "streamed; leave --stream out"
            )
        return Entered(stands[0].hidden, tuple((stand.rest, stand.named) for stand in stands))


def through(chain: Chain, index: int, hidden: Tensor, entered: Entered) -> Tensor:
    """h_{index+1} from h_index."""
    rest, named = entered.given[index]
    result = chain.network.module.get_submodule(chain.blocks[index])(hidden, *rest, **named)
    return result if isinstance(result, Tensor) else result[0]  # type: ignore[no-any-return]


@contextmanager
def leaving(chain: Chain, batch: Batch, last: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the shell with `last` as h_L; gives (output, h_0 as the shell made it, with its graph)."""
    with _standing(chain) as stands:
        stands[-1].gives = last
        output = run(chain.network, batch)
        yield output, stands[0].hidden


class _Stand(nn.Module):
    """Stands in a block's place."""

    hidden: Tensor
    rest: tuple[Any, ...]
    named: dict[str, Any]

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block: Callable[[], nn.Module] = lambda: block  # no submodule: the block's weights are not there
        self.gives: Tensor | None = None

    def __getattr__(self, name: str) -> Any:  # what models ask of their blocks, such as their kind of attention
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"](), name)

    def forward(self, hidden: Tensor, *rest: Any, **named: Any) -> Tensor:
        self.hidden, self.rest, self.named = hidden, rest, named
        return hidden if self.gives is None else self.gives


@contextmanager
def _standing(chain: Chain) -> Iterator[list[_Stand]]:
    path = chain.blocks[0].rpartition(".")[0]
    row = chain.network.module.get_submodule(path)
    blocks = list(row.children())
    stands = [_Stand(block) for block in blocks]
    try:
        for index, stand in enumerate(stands):
            row[index] = stand  # type: ignore[index]
        yield stands
    finally:
        for index, block in enumerate(blocks):
            row[index] = block  # type: ignore[index]
