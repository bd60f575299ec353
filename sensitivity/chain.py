"""Chain: a network as a shell around a row of blocks, each of which turns hidden states into hidden states.

    batch -> [shell: embeddings] -> h_0 -> block 0 -> h_1 -> ... -> block L-1 -> h_L -> [shell: last norm, head] -> output

The blocks are the children of the network's largest `nn.ModuleList`. The shell is the network's own forward pass with a
stand-in in each block's place, which notes what the block would have been given (masks and positions differ from model to
model) and hands on what it is told to; so nothing about an architecture is written down here. That hidden states are indeed
all that goes from block to block is not believed but tried, by `check_straight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .network import Batch, Network, run
from .probe import watch_gradients
from .units import Unit

Given = tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]  # of each block: what follows its hidden states in the call


@dataclass(frozen=True, eq=False)
class Chain:
    """`blocks` are module paths in order; `units_of` the units of each of them, and of the shell under the empty path."""

    network: Network
    blocks: tuple[str, ...]
    units_of: Mapping[str, tuple[Unit, ...]]


def find_chain(network: Network) -> Chain:
    """The chain of `network`. Raises ValueError when it has no row of blocks, each with weights of its own."""
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), name, module)
        for name, module in network.module.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    _, path, row = max(lists, key=lambda found: found[0], default=(0, "", nn.ModuleList()))
    blocks = tuple(f"{path}.{index}" for index in range(len(row)))
    modules = {unit.name: (*(matrix.module for matrix in unit.matrices), *unit.shared_with) for unit in network.inventory.units}
    owners = {unit: {_owner(blocks, module) for module in found} for unit, found in modules.items()}
    alone = len({id(block) for block in row}) == len(row) and all(len(found) == 1 for found in owners.values())
    if len(row) < 2 or not alone or network.inventory.family == "convolutional":
        raise ValueError(
            f"model {network.inventory.model_id!r} is no row of blocks, so it cannot be streamed; leave --stream out"
        )
    units_of = {b: tuple(unit for unit in network.inventory.units if owners[unit.name] == {b}) for b in ("", *blocks)}
    return Chain(network, blocks, units_of)


def check_straight(chain: Chain, batch: Batch) -> None:
    """Raises ValueError unless the blocks are called in order, once each, with what the block before gave, and nothing else
    that they are given, nor the output, depends on what any but the last gave. The weights of the shell must be there."""
    gave: list[Tensor] = []

    def give(stand: nn.Module, received: object, hidden: Tensor) -> Tensor:
        gave.append(hidden.detach().requires_grad_())
        return gave[-1]

    shell = watch_gradients(chain.network, batch, chain.units_of[""], lambda use, rows, gradient: None)
    with shell, _standing(chain) as stands:  # gradients flow from the shell's units on
        for stand in stands:
            stand.register_forward_hook(give)
        cause: Exception | None = None
        try:
            output = run(chain.network, batch)
        except Exception as error:  # models that pick results apart find a tensor in their place, and each fails in its way
            cause = error
        straight = cause is None and stands[0].calls == list(range(len(stands)))
        straight = straight and all(stand.hidden is before for stand, before in zip(stands[1:], gave, strict=False))
        beside = tree_leaves([(stand.rest, stand.named) for stand in stands]) if straight else []
        straight = straight and not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in beside)
        if straight:
            *others, last = torch.autograd.grad(output.sum(), gave, allow_unused=True)
            straight = last is not None and all(gradient is None for gradient in others)
    if not straight:
        raise ValueError(
            f"model {chain.network.inventory.model_id!r} hands more than hidden states from block to block, so it cannot be "
            "streamed; leave --stream out"
        ) from cause


@torch.no_grad()
def enter(chain: Chain, batch: Batch) -> tuple[Tensor, Given]:
    """h_0, and what each block is given beside hidden states. Weights of the shell must be there, those of the blocks not."""
    with _standing(chain) as stands:
        run(chain.network, batch)
        return stands[0].hidden, tuple((stand.rest, stand.named) for stand in stands)


def through(chain: Chain, index: int, hidden: Tensor, given: Given) -> Tensor:
    """h_{index+1} from h_index."""
    rest, named = given[index]
    result = chain.network.module.get_submodule(chain.blocks[index])(hidden, *rest, **named)
    return result if isinstance(result, Tensor) else result[0]


@contextmanager
def leaving(chain: Chain, batch: Batch, last: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the shell with `last` as h_L; gives (output, h_0 as the shell made it, with its graph)."""
    with _standing(chain) as stands:
        stands[-1].gives = last
        output = run(chain.network, batch)
        yield output, stands[0].hidden


def _owner(blocks: tuple[str, ...], module: str) -> str:
    return next((block for block in blocks if f"{module}.".startswith(f"{block}.")), "")


class _Stand(nn.Module):
    """Stands in a block's place. `calls` is a list that the stand-ins of a row share."""

    hidden: Tensor
    rest: tuple[Any, ...]
    named: dict[str, Any]

    def __init__(self, block: nn.Module, index: int, calls: list[int]) -> None:
        super().__init__()
        self._block: Callable[[], nn.Module] = lambda: block  # no submodule: the block's weights are not there
        self._index, self.calls = index, calls
        self.gives: Tensor | None = None

    def __getattr__(self, name: str) -> Any:  # what models ask of their blocks, such as their kind of attention
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"](), name)

    def forward(self, hidden: Tensor, *rest: Any, **named: Any) -> Tensor:
        self.calls.append(self._index)
        self.hidden, self.rest, self.named = hidden, rest, named
        return hidden if self.gives is None else self.gives


@contextmanager
def _standing(chain: Chain) -> Iterator[list[_Stand]]:
    path = chain.blocks[0].rpartition(".")[0]
    row = chain.network.module.get_submodule(path)
    assert isinstance(row, nn.ModuleList)
    blocks, calls = list(row), list[int]()
    stands = [_Stand(block, index, calls) for index, block in enumerate(blocks)]
    try:
        for index, stand in enumerate(stands):
            row[index] = stand
        yield stands
    finally:
        for index, block in enumerate(blocks):
            row[index] = block
