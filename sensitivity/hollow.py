"""Hollow networks: modules on the meta device whose weights are read from disk for as long as a block is open.

A hollow network takes every hook and walks through every function that a loaded one does; only one block's weights, in
float32, are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .chain import Chain

Read = Callable[[str], Tensor]  # the name of a parameter -> its numbers, in the dtype they are stored in


@contextmanager
def opened(chain: Chain, read: Read, path: str) -> Iterator[None]:
    """While open, the parameters of the block at `path` (the empty path: of the shell) are there, float32 and frozen, on the
    device of the network."""
    module = chain.network.module
    root = module.get_submodule(path)
    names = [f"{path}.{name}" if path else name for name, _ in root.named_parameters(remove_duplicate=False)]
    if not path:
        names = [name for name in names if not name.startswith(tuple(f"{block}." for block in chain.blocks))]
    hollow = {name: module.get_parameter(name) for name in names}
    filled: dict[int, nn.Parameter] = {}  # by the hollow parameter: shared ones stay shared
    try:
        for name, parameter in hollow.items():
            if id(parameter) not in filled:
                filled[id(parameter)] = nn.Parameter(read(name).to(chain.network.device).float(), requires_grad=False)
            _put(module, name, filled[id(parameter)])
        yield
    finally:
        for name, parameter in hollow.items():
            _put(module, name, parameter)


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    module.get_submodule(owner)._parameters[last] = parameter
