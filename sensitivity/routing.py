"""Routing: what the router of a mixture of experts did with a part of the data.

For each expert of each block and each batch:

    counts    n_e, the (token, slot) pairs that were sent to expert e; over a block they add up to tokens x slots
    mass      sum over these of the router's probability of e: the softmax over all experts, before that of the chosen ones
              is scaled up to one (MC-MoE, arXiv 2410.06270, takes it so)

Padding counts as no token. The block is found as the module that holds `experts.Experts`; its router is that child of the
block, called something with "gate" or "router", whose first output has one number for each expert: the logits. Routers
that do not take a softmax (DeepSeek's sigmoid) get the softmax of their logits all the same; it is a measure of how much
more than its rivals an expert is wanted. A block without such a child has no mass (NaN), which `require_mass` complains of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from .calibration import Part
from .experts import Experts
from .network import Batch, Network, predictions, run
from .progress import Progress, Steps, compute_always, silent
from .report import Floats
from .units import Unit

Column = tuple[str, int]  # the path of a block's experts, and the number of one of them
Visit = Callable[[str, Experts, Tensor, Tensor, Tensor, Tensor | None], None]  # path, experts, hidden, chosen, weights, logits


@dataclass(frozen=True, eq=False)
class Routing:
    """`counts` and `mass` (batches, columns), `tokens` (batches,): of all experts of the network, units or not."""

    columns: tuple[Column, ...]
    counts: Floats
    mass: Floats
    tokens: Floats

    def unit_counts(self, units: Sequence[Unit]) -> Floats:
        """The tokens that reached each unit in the whole part, (units,); a unit that is no expert has every token."""
        return for_units(units, self.columns, self.counts.sum(axis=0), float(self.tokens.sum()))


def for_units(units: Sequence[Unit], columns: Sequence[Column], values: Floats, otherwise: float) -> Floats:
    """`values` (columns,) as (units,), `otherwise` for a unit that is no expert."""
    place = {column: c for c, column in enumerate(columns)}
    return np.array([values[place[column_of(unit)]] if unit.kind == "expert" else otherwise for unit in units])


def column_of(unit: Unit) -> Column:
    """Where an expert unit stands: `...mlp.experts.experts.7.down_proj` is number 7 of `...mlp.experts`."""
    assert unit.expert is not None
    return unit.matrices[0].module.rsplit(".", 3)[0], unit.expert


def columns_of(module: nn.Module) -> tuple[Column, ...]:
    """All experts of `module`."""
    held = [(path, child) for path, child in module.named_modules() if isinstance(child, Experts)]
    return tuple((path, index) for path, child in held for index in range(len(child.experts)))


def collect_routing(network: Network, part: Part, steps: Steps = compute_always, progress: Progress = silent) -> Routing:
    """The routing of `part`, one forward pass and one step a batch."""
    found = []
    for index, batch in enumerate(part.batches):
        progress("estimate", index, len(part.batches))
        found.append(steps(f"routing {index}", partial(route, network, batch)))
    progress("estimate", len(part.batches), len(part.batches))
    return as_routing(network, found, part.batches)


def as_routing(network: Network, tables: Sequence[Floats], batches: Sequence[Batch]) -> Routing:
    """The tables (2, columns) that `route` gave for `batches`."""
    counts, mass = np.stack(tables, axis=1)
    tokens = np.array([predictions(network, batch) for batch in batches], dtype=np.float64)
    return Routing(columns_of(network.module), counts, mass, tokens)


def route(network: Network, batch: Batch) -> Floats:
    """Counts and mass of one batch, (2, columns)."""
    columns = columns_of(network.module)
    place = {column: c for c, column in enumerate(columns)}
    table = np.zeros((2, len(columns)))

    def visit(path: str, experts: Experts, hidden: Tensor, chosen: Tensor, weights: Tensor, logits: Tensor | None) -> None:
        first, number = place[path, 0], len(experts.experts)
        table[:, first : first + number] += tally(chosen, logits, number)

    with torch.no_grad(), watch_routing(network, batch, visit):
        run(network, batch)
    return table


def tally(chosen: Tensor, logits: Tensor | None, experts: int) -> Floats:
    """Counts and mass (2, experts) of tokens sent to `chosen` (T, slots) by `logits` (T, experts)."""
    chosen, logits = chosen.cpu(), None if logits is None else logits.cpu()
    token, slot = torch.where(chosen < experts)  # some models send a token nowhere by a number beyond the last expert
    sent = chosen[token, slot]
    counts = torch.bincount(sent, minlength=experts).double()
    if logits is None:
        return np.stack([counts.numpy(), np.full(experts, np.nan)])
    probability = logits.double().softmax(-1)[token, sent]
    mass = torch.zeros(experts, dtype=torch.float64).index_add_(0, sent, probability)
    return np.stack([counts.numpy(), mass.numpy()])


@contextmanager
def watch_routing(network: Network, batch: Batch, visit: Visit) -> Iterator[None]:
    """While open, call `visit` whenever a block has run its experts, with what they were given; padding left out."""
    latest: dict[str, Tensor] = {}  # a block's path -> its router's logits in this pass
    handles = []

    def from_router(block: str, experts: int, module: nn.Module, inputs: object, output: object) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        if isinstance(logits, Tensor) and logits.shape[-1] == experts:
            latest[block] = logits.flatten(0, -2)

    def from_experts(path: str, module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        assert isinstance(module, Experts)
        hidden, chosen, weights = inputs
        logits = latest.pop(path.rpartition(".")[0], None)
        mask = batch.get("attention_mask")
        if mask is not None and mask.numel() == len(hidden):
            keep = mask.flatten().bool()
            hidden, chosen, weights = hidden[keep], chosen[keep], weights[keep]
            logits = None if logits is None else logits[keep]
        visit(path, module, hidden, chosen, weights, logits)

    try:
        for path, experts in network.module.named_modules():
            if not isinstance(experts, Experts):
                continue
            block = path.rpartition(".")[0]
            for name, child in network.module.get_submodule(block).named_children():
                if "gate" in name or "router" in name:
                    handles.append(child.register_forward_hook(partial(from_router, block, len(experts.experts))))
            handles.append(experts.register_forward_hook(partial(from_experts, path)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_mass(routing: Routing) -> None:
    """Raise ValueError when a block's router was not found."""
    blind = [path for c, (path, _) in enumerate(routing.columns) if np.isnan(routing.mass[:, c]).any()]
    if blind:
        raise ValueError(f"the router of {blind[0]} was not found, so there are no probabilities; use expert_frequency")


def at_least_once(columns: Sequence[Column], counts: Floats, mass: Floats) -> tuple[Floats, Floats]:
    """Counts and mass (columns,) of a whole part, every expert that no token reached counted as reached by one.

    That token brings the mass that a (token, slot) pair of its block has on average.
    """
    counts, mass = counts.copy(), mass.copy()
    for block in {path for path, _ in columns}:
        inside = np.array([path == block for path, _ in columns])
        missed = inside & (counts == 0)
        mass[missed] = mass[inside].sum() / max(1.0, counts[inside].sum())
        counts[missed] = 1.0
    return counts, mass


def missed_note(units: Sequence[Unit], counts: Floats) -> tuple[str, ...]:
    """What to tell the reader about experts that no token reached; `counts` (units,)."""
    missed = sum(unit.kind == "expert" and count == 0 for unit, count in zip(units, counts, strict=True))
    experts = sum(unit.kind == "expert" for unit in units)
    return (f"{missed} of {experts} experts were reached by no token and are counted as reached by one",) if missed else ()
