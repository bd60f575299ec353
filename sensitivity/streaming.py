"""Streaming: a profile block by block, for models that do not fit in memory.

At any time there are in memory the weights of one block, the moments of its inputs, and one batch. Hidden states and their
gradients are spilled to disk, and each block's forward pass is done again for its backward pass. The work is cut into tasks,
each of which leaves files behind and can be done by any process that sees them:

    forward k     h_{k+1} = block_k(h_k) for every batch          after forward k-1
    render k      block k's weights rounded in every format       after forward k-1
    leave         the objective and its gradient at h_L           after the last forward
    backward k    the gradient at h_k from that at h_{k+1}        after backward k+1
    sums k        the metric's table of block k, batch by batch   after forward k-1, backward k+1 and render k

so after the two chains of forward and backward passes, rendering and sums of different blocks are independent. A task whose
files are there is not done again: what was killed goes on where it was. Only a metric that is a Flow streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .calibration import Part
from .chain import Chain, Entered, enter, leaving, through
from .estimate import Estimate, ratio_estimate
from .flow import Flow, Passage, Visit, batch_sums
from .hollow import Read, opened
from .moments import Moments, adding_to
from .network import predictions
from .probe import watch_gradients, watch_inputs
from .progress import Progress, Steps
from .render import Renderings
from .report import Floats
from .spill import Spill

SHELL = ""


@dataclass(frozen=True)
class Task:
    """A piece of work that any process may do once those that it `needs` are done. Done twice, it leaves the same files."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[], None]


@dataclass(frozen=True, eq=False)
class Stream:
    """All that the tasks of one profile share. `entered` remembers masks and positions of the batches, by part."""

    chain: Chain
    read: Read
    flow: Flow
    renderings: Renderings
    part: Part
    formats: tuple[str, ...]
    seed: int
    spill: Spill
    steps: Steps
    entered: dict[str, list[Entered]] = field(default_factory=dict)


PartName = Literal["render", "estimate"]


def stream_estimate(stream: Stream, progress: Progress) -> Estimate:
    """Do all tasks in order and put their tables together; the spilled files are then let go."""
    todo = tasks(stream)
    for index, task in enumerate(todo):
        progress("stream", index, len(todo))
        task.run()
    progress("stream", len(todo), len(todo))
    found = gathered(stream)
    stream.spill.clear()
    return found


def tasks(stream: Stream) -> tuple[Task, ...]:
    """Every task, each after those that it needs."""
    chain, last = stream.chain, len(stream.chain.blocks) - 1
    wanted = stream.renderings.missing([(unit, fmt) for unit in chain.network.inventory.units for fmt in stream.formats])
    result = []
    parts: tuple[PartName, ...] = ("render", "estimate") if wanted and stream.renderings.part is not None else ("estimate",)
    for part in parts:
        for k in range(last + 1):
            before = (f"{part} forward {k - 1}",) if k else ()
            if part == "render":
                result.append(Task(f"render {k}", before, partial(_render, stream, k)))
            result.append(Task(f"{part} forward {k}", before, partial(_forward, stream, part, k)))
    if "render" in parts:
        result.append(Task("render shell", (f"render forward {last}",), partial(_render, stream, None)))
    else:
        result += [Task(f"render {k}", (), partial(_render, stream, k)) for k in range(last + 1)]
        result.append(Task("render shell", (), partial(_render, stream, None)))
    if stream.flow.objective is not None:
        result.append(Task("leave", (f"estimate forward {last}",), partial(_leave, stream)))
    for k in range(last, -1, -1):
        flows = _gradient_from(stream, k, last)
        result.append(
            Task(f"sums {k}", (f"estimate forward {k - 1}",) * (k > 0) + (*flows, f"render {k}"), partial(_sums, stream, k))
        )
        if stream.flow.objective is not None:
            result.append(Task(f"backward {k}", flows, partial(_backward, stream, k)))
    shell_needs = ("backward 0",) if stream.flow.objective is not None else (f"estimate forward {last}",)
    result.append(Task("sums shell", (*shell_needs, "render shell"), partial(_sums_shell, stream)))
    return tuple(result)


def gathered(stream: Stream) -> Estimate:
    """The estimate from the tables of all blocks. Every task must be done."""
    network = stream.chain.network
    row = {unit.name: u for u, unit in enumerate(network.inventory.units)}
    tables = np.empty((len(stream.part.batches), len(row), len(stream.formats)))
    for block, units in stream.chain.units_of.items():
        if units:
            tables[:, [row[unit.name] for unit in units]] = stream.steps(_step(block), _absent)
    counts = [predictions(network, batch) for batch in stream.part.batches]
    return ratio_estimate(list(tables), counts, stream.flow.quantity or network.quantity)


def _gradient_from(stream: Stream, k: int, last: int) -> tuple[str, ...]:
    if stream.flow.objective is None:
        return ()
    return (f"backward {k + 1}",) if k < last else ("leave",)


def _batches(stream: Stream, part: PartName) -> Part:
    found = stream.part if part == "estimate" else stream.renderings.part
    assert found is not None
    return found


def _entered(stream: Stream, part: PartName) -> list[Entered]:
    if part not in stream.entered:
        with opened(stream.chain, stream.read, SHELL):
            stream.entered[part] = [enter(stream.chain, batch) for batch in _batches(stream, part).batches]
    return stream.entered[part]


def _hidden(stream: Stream, part: PartName, k: int, b: int) -> Tensor:
    """h_k of batch b."""
    return _entered(stream, part)[b].hidden if k == 0 else stream.spill.get(f"{part}-h{k}-{b}")


@torch.no_grad()
def _forward(stream: Stream, part: PartName, k: int) -> None:
    missing = [b for b in range(len(_batches(stream, part).batches)) if f"{part}-h{k + 1}-{b}" not in stream.spill]
    if not missing:
        return
    entered = _entered(stream, part)
    with opened(stream.chain, stream.read, stream.chain.blocks[k]):
        for b in missing:
            stream.spill.put(f"{part}-h{k + 1}-{b}", through(stream.chain, k, _hidden(stream, part, k, b), entered[b]))


@torch.no_grad()
def _render(stream: Stream, k: int | None) -> None:
    """Round block k, or the shell for None."""
    chain, renderings = stream.chain, stream.renderings
    path = SHELL if k is None else chain.blocks[k]
    units = chain.units_of[path]
    missing = renderings.missing([(unit, fmt) for unit in units for fmt in stream.formats])
    if not missing:
        return
    moments = Moments({}, {})
    entered = [] if renderings.part is None else _entered(stream, "render")
    with opened(chain, stream.read, path):
        for b, batch in enumerate(() if renderings.part is None else renderings.part.batches):
            with watch_inputs(chain.network, batch, units, adding_to(moments, chain.network)):
                if k is None:
                    with leaving(chain, batch, _hidden(stream, "render", len(chain.blocks), b)):
                        pass
                else:
                    through(chain, k, _hidden(stream, "render", k, b), entered[b])
        renderings.round(missing, moments)


def _leave(stream: Stream) -> None:
    chain, depth = stream.chain, len(stream.chain.blocks)
    missing = [b for b in range(len(stream.part.batches)) if f"g{depth}-{b}" not in stream.spill]
    if not missing:
        return
    with opened(chain, stream.read, SHELL):
        for b in missing:
            last = _hidden(stream, "estimate", depth, b).requires_grad_()
            _drive_out(stream, b, last)
            stream.spill.put(f"g{depth}-{b}", _gradient(last))


def _drive_out(stream: Stream, b: int, last: Tensor) -> None:
    """Run the shell on h_L = `last` and the objective's gradient back, through `last` to where the shell made h_0."""
    batch = stream.part.batches[b]
    labels = None if stream.part.labels is None else stream.part.labels[b]
    assert stream.flow.objective is not None
    with torch.enable_grad(), leaving(stream.chain, batch, last) as (output, first):
        generator = torch.Generator().manual_seed(stream.seed + b)
        scalar = stream.flow.objective(stream.chain.network, output, batch, labels, generator)
        scalar.backward()  # type: ignore[no-untyped-call]
        if first.requires_grad:
            first.backward(stream.spill.get(f"g0-{b}"))  # type: ignore[no-untyped-call]


def _backward(stream: Stream, k: int) -> None:
    missing = [b for b in range(len(stream.part.batches)) if f"g{k}-{b}" not in stream.spill]
    if not missing:
        return
    entered = _entered(stream, "estimate")
    with opened(stream.chain, stream.read, stream.chain.blocks[k]):
        for b in missing:
            hidden = _drive_back(stream, k, b, entered[b])
            stream.spill.put(f"g{k}-{b}", _gradient(hidden))


def _drive_back(stream: Stream, k: int, b: int, entered: Entered) -> Tensor:
    """Block k forward and backward; the gradient is left at the h_k that is returned."""
    hidden = _hidden(stream, "estimate", k, b).detach().clone().requires_grad_()
    with torch.enable_grad():
        through(stream.chain, k, hidden, entered).backward(stream.spill.get(f"g{k + 1}-{b}"))  # type: ignore[no-untyped-call]
    return hidden


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None or not bool(torch.isfinite(tensor.grad).all()):
        raise ValueError("the gradient of the objective is NaN, infinite or missing; check the weights and the calibration data")
    return tensor.grad


def _sums(stream: Stream, k: int) -> None:
    units = stream.chain.units_of[stream.chain.blocks[k]]
    if not units:
        return
    entered = _entered(stream, "estimate")

    def drive(b: int, visit: Visit) -> None:
        network, batch = stream.chain.network, stream.part.batches[b]
        if stream.flow.objective is None:
            nothing = torch.empty(0)
            with torch.no_grad(), watch_inputs(network, batch, units, lambda use, rows: visit(use, rows, nothing)):
                through(stream.chain, k, _hidden(stream, "estimate", k, b), entered[b])
        else:
            with watch_gradients(network, batch, units, visit):
                _drive_back(stream, k, b, entered[b])

    _tables(stream, stream.chain.blocks[k], drive)


def _sums_shell(stream: Stream) -> None:
    units, depth = stream.chain.units_of[SHELL], len(stream.chain.blocks)
    if not units:
        return

    def drive(b: int, visit: Visit) -> None:
        network, batch = stream.chain.network, stream.part.batches[b]
        last = _hidden(stream, "estimate", depth, b)
        if stream.flow.objective is None:
            nothing = torch.empty(0)
            watched = watch_inputs(network, batch, units, lambda use, rows: visit(use, rows, nothing))
            with torch.no_grad(), watched, leaving(stream.chain, batch, last):
                pass
        else:
            with watch_gradients(network, batch, units, visit):
                _drive_out(stream, b, last.requires_grad_())

    _tables(stream, SHELL, drive)


def _tables(stream: Stream, path: str, drive: Callable[[int, Visit], None]) -> None:
    """The tables of the units at `path`, (batches, units, formats), as one step."""
    units = stream.chain.units_of[path]

    def compute() -> Floats:
        with opened(stream.chain, stream.read, path):
            return np.stack(
                [
                    batch_sums(
                        stream.flow,
                        Passage(stream.chain.network, stream.renderings, units, stream.formats, batch, partial(drive, b)),
                    )
                    for b, batch in enumerate(stream.part.batches)
                ]
            )

    stream.steps(_step(path), compute)


def _step(path: str) -> str:
    return f"sums of {path or 'the shell'}"


def _absent() -> Floats:
    raise KeyError("a task of the stream has not been done")
