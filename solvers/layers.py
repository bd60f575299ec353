"""How a dynamic programme over lists of states finds its way back: one layer for each item looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arrays import Ints


@dataclass(frozen=True, eq=False)
class Layer:
    """One item looked at. State k came from state origin[k] % before of the layer before, by option origin[k] // before.

    `options` are those that the item may take; `before` is the number of states of the layer before.
    """

    item: int
    options: Ints
    before: int
    origin: Ints


def trace(layers: Sequence[Layer], state: int, otherwise: Ints) -> Ints:
    """The choice (n,) behind `state` of the last of `layers`; items that were not looked at are as in `otherwise` (n,)."""
    choice = otherwise.copy()
    for layer in reversed(layers):
        option, state = divmod(int(layer.origin[state]), layer.before)
        choice[layer.item] = layer.options[option]
    return choice
