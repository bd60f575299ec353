"""Streaming: a profile block by block, for models that do not fit in memory.

At any time there are in memory the weights of one block, the moments of its inputs, and one batch. Hidden states and their
gradients are spilled to disk, and each block's forward pass is done again for its backward pass. The work is cut into tasks,
each of which leaves files behind and can be done by any process that sees them:

    forward k     h_{k+1} = block_k(h_k) for every batch          after forward k-1
    render k      block k's weights rounded in every format       after forward k-1
    leave         the objective and its gradient at h_L           after the last forward
    backward k    the gradient at h_k from that at h_{k+1}        after backward k+1
    sums k        the metric's table of block k, batch by batch   after forward k-1, backward k+1 and render k
                  (and how many tokens reach its experts)

so after the two chains of forward and backward passes, rendering and sums of different blocks are independent. A task whose
files are there is not done again: what was killed goes on where it was. Only a metric that is a Flow streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .calibration import Part
from .chain import Chain, Given, check_straight, enter, leaving, through
from .estimate import Estimate, ratio_estimate
from .flow import Flow, Passage, Visit, batch_sums, draws_of, scalar_of, seed_of
from .hollow import Read, opened
from .journal import journal
from .moments import Moments, adding_to
from .network import predictions
from .probe import Rows, Use, watch_gradients, watch_inputs
from .progress import Progress, Steps
from .render import Renderings
from .report import Floats
from .spill import Spill

SHELL = ""


@dataclass(frozen=True)
class Task:
    """A piece of work that any process may do once those that it `needs` are done. Done twice, it leaves the same files.

    `reads` and `writes` are those files, for machines that do not share a disk; what it has the stream's steps remember is
    named by `steps`. Tasks that are `chained` wait for one another: little is won by sharing them out.
    """

    name: str
    needs: tuple[str, ...]
    run: Callable[[], None]
    chained: bool = False
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Stream:
    """All that the tasks of one profile share. `given` remembers masks and positions of the batches, by part."""

    chain: Chain
    read: Read
    flow: Flow
    renderings: Renderings
    part: Part
    formats: Sequence[str]
    seed: int
    spill: Spill
    steps: Steps
    given: dict[str, list[Given]] = field(default_factory=dict)


PartName = Literal["render", "estimate"]


def stream_estimate(stream: Stream, progress: Progress) -> Estimate:
    """Do all tasks in order and put their tables together. The spilled files are for the caller to let go, once the estimate
    is kept."""
    todo = tasks(stream)
    for index, task in enumerate(todo):
        progress("stream", index, len(todo))
        task.run()
    progress("stream", len(todo), len(todo))
    return gathered(stream)


def tasks(stream: Stream) -> tuple[Task, ...]:
    """Every task, each after those that it needs."""
    last = len(stream.chain.blocks) - 1
    result = []
    parts: tuple[PartName, ...] = ("render", "estimate") if stream.renderings.part is not None else ("estimate",)
    for part in parts:
        for k in range(last + 1):
            before = (f"{part} forward {k - 1}",) if k else ()
            states = _hidden(stream, part, k), _hidden(stream, part, k + 1)
            result.append(Task(f"{part} forward {k}", before, partial(_forward, stream, part, k), True, *states))
            if part == "render":
                result.append(_rendering(stream, k, before, _hidden(stream, part, k)))
    if "render" in parts:
        result.append(_rendering(stream, None, (f"render forward {last}",), _hidden(stream, "render", last + 1)))
    else:
        result += [_rendering(stream, k, (), ()) for k in (*range(last + 1), None)]
    driven = stream.flow.objective is not None
    if driven:
        files = _hidden(stream, "estimate", last + 1), _gradients(stream, last + 1)
        result.append(Task("leave", (f"estimate forward {last}",), partial(_leave, stream), True, *files))
    for k in range(last, -1, -1):
        flows = _gradient_from(stream, k, last)
        reads = _hidden(stream, "estimate", k) + (_gradients(stream, k + 1) if driven else ())
        needs = (f"estimate forward {k - 1}",) * (k > 0) + (*flows, f"render {k}")
        result.append(
            Task(f"sums {k}", needs, partial(_sums, stream, k), False, reads + _rendered(stream, k), (), _steps_of(stream, k))
        )
        if driven:
            result.append(Task(f"backward {k}", flows, partial(_backward, stream, k), True, reads, _gradients(stream, k)))
    reads = _hidden(stream, "estimate", last + 1) + (_gradients(stream, 0) if driven else ()) + _rendered(stream, None)
    shell_needs = ("backward 0",) if driven else (f"estimate forward {last}",)
    needs = (*shell_needs, "render shell")
    result.append(Task("sums shell", needs, partial(_sums_shell, stream), False, reads, (), _steps_of(stream, None)))
    return tuple(result)


def _rendering(stream: Stream, k: int | None, needs: tuple[str, ...], reads: tuple[Path, ...]) -> Task:
    name = f"render {'shell' if k is None else k}"
    return Task(name, needs, partial(_render, stream, k), False, reads, _rendered(stream, k))


def _hidden(stream: Stream, part: PartName, k: int) -> tuple[Path, ...]:
    """The files of h_k; h_0 is made wherever it is needed."""
    return tuple(stream.spill.path(f"{part}-h{k}-{b}") for b in range(len(_batches(stream, part).batches)) if k)


def _gradients(stream: Stream, k: int) -> tuple[Path, ...]:
    """The files of the gradient at h_k."""
    every = product(range(len(stream.part.batches)), range(draws_of(stream.flow, stream.chain.network)))
    return tuple(stream.spill.path(f"g{k}-{b}-{draw}") for b, draw in every)


def _rendered(stream: Stream, k: int | None) -> tuple[Path, ...]:
    """The files of the renderings of block k, or of the shell for None."""
    units = stream.chain.units_of[SHELL if k is None else stream.chain.blocks[k]]
    return tuple(stream.renderings.files(units, stream.formats))


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


def tokens_by_unit(stream: Stream) -> Floats:
    """The tokens that reached each unit, (units,); a unit that is no expert has every token. Every task must be done."""
    network = stream.chain.network
    found = dict.fromkeys((unit.name for unit in network.inventory.units), np.nan)
    for block, units in stream.chain.units_of.items():
        if any(unit.kind == "expert" for unit in units):
            found |= zip((unit.name for unit in units), stream.steps(_tokens_step(block), _absent).tolist(), strict=True)
    counts = np.array(list(found.values()))
    return np.where(np.isnan(counts), float(sum(predictions(network, batch) for batch in stream.part.batches)), counts)


def _gradient_from(stream: Stream, k: int, last: int) -> tuple[str, ...]:
    if stream.flow.objective is None:
        return ()
    return (f"backward {k + 1}",) if k < last else ("leave",)


def _batches(stream: Stream, part: PartName) -> Part:
    found = stream.part if part == "estimate" else stream.renderings.part
    assert found is not None
    return found


def _given(stream: Stream, part: PartName) -> list[Given]:
    """What the blocks are given beside hidden states, for every batch; h_0 is spilled."""
    if part not in stream.given:
        found = []
        with opened(stream.chain, stream.read, SHELL):
            for b, batch in enumerate(_batches(stream, part).batches):
                if b == 0:
                    check_straight(stream.chain, batch)
                hidden, given = enter(stream.chain, batch)
                stream.spill.put(f"{part}-h0-{b}", _finite(hidden, "what enters the first block"))
                found.append(given)
        stream.given[part] = found
    return stream.given[part]


@torch.no_grad()
def _forward(stream: Stream, part: PartName, k: int) -> None:
    missing = [b for b in range(len(_batches(stream, part).batches)) if f"{part}-h{k + 1}-{b}" not in stream.spill]
    if not missing or (part == "render" and not _unrendered(stream)):
        return
    given = _given(stream, part)
    with opened(stream.chain, stream.read, stream.chain.blocks[k]):
        for b in missing:
            hidden = through(stream.chain, k, _spilled(stream, f"{part}-h{k}-{b}"), given[b])
            stream.spill.put(f"{part}-h{k + 1}-{b}", _finite(hidden, f"what leaves {stream.chain.blocks[k]!r}"))
    _note(stream, f"{part} forward {k}")


def _spilled(stream: Stream, name: str) -> Tensor:
    return stream.spill.get(name).to(stream.chain.network.device)


def _unrendered(stream: Stream) -> bool:
    """Whether any unit lacks a rendering; a model whose renderings are all there needs no hidden states for them."""
    units = stream.chain.network.inventory.units
    return bool(stream.renderings.missing([(unit, fmt) for unit in units for fmt in stream.formats]))


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
    given = [] if renderings.part is None or k is None else _given(stream, "render")
    with opened(chain, stream.read, path):
        for b, batch in enumerate(() if renderings.part is None else renderings.part.batches):
            hidden = _spilled(stream, f"render-h{len(chain.blocks) if k is None else k}-{b}")
            with watch_inputs(chain.network, batch, units, adding_to(moments, chain.network)):
                if k is None:
                    with leaving(chain, batch, hidden):
                        pass
                else:
                    through(chain, k, hidden, given[b])
        renderings.round(missing, moments)
    _note(stream, f"render {path or 'shell'}")


def _leave(stream: Stream) -> None:
    depth = len(stream.chain.blocks)
    missing = _without_gradient(stream, depth)
    if missing:
        with opened(stream.chain, stream.read, SHELL):
            for b, draw in missing:
                stream.spill.put(f"g{depth}-{b}-{draw}", _gradient(_drive_out(stream, b, draw)))
        _note(stream, "leave")


def _without_gradient(stream: Stream, k: int) -> list[tuple[int, int]]:
    """The batches and draws of the objective whose gradient at h_k is not there yet."""
    every = product(range(len(stream.part.batches)), range(draws_of(stream.flow, stream.chain.network)))
    return [(b, draw) for b, draw in every if f"g{k}-{b}-{draw}" not in stream.spill]


def _drive_out(stream: Stream, b: int, draw: int) -> Tensor:
    """Run the shell on h_L and the objective's gradient back: to the h_L that is returned and, where units of the shell are
    watched, on from h_0 to where the shell made it."""
    batch, part = stream.part.batches[b], stream.part
    last = _spilled(stream, f"estimate-h{len(stream.chain.blocks)}-{b}").requires_grad_()
    labels = part.classes(b)
    assert stream.flow.objective is not None
    with torch.enable_grad(), leaving(stream.chain, batch, last) as (output, first):
        seed = seed_of(stream.seed, b, draw)
        scalar = scalar_of(stream.flow.objective, stream.chain.network, output, batch, labels, seed)
        scalar.backward()  # type: ignore[no-untyped-call]
        if first.requires_grad:
            first.backward(_spilled(stream, f"g0-{b}-{draw}"))  # type: ignore[no-untyped-call]
    return last


def _backward(stream: Stream, k: int) -> None:
    missing = _without_gradient(stream, k)
    if not missing:
        return
    given = _given(stream, "estimate")
    with opened(stream.chain, stream.read, stream.chain.blocks[k]):
        for b, draw in missing:
            stream.spill.put(f"g{k}-{b}-{draw}", _gradient(_drive_back(stream, k, b, draw, given[b])))
    _note(stream, f"backward {k}")


def _drive_back(stream: Stream, k: int, b: int, draw: int, given: Given) -> Tensor:
    """Block k forward and backward; the gradient is left at the h_k that is returned."""
    hidden = _spilled(stream, f"estimate-h{k}-{b}").requires_grad_()
    gradient = _spilled(stream, f"g{k + 1}-{b}-{draw}")
    with torch.enable_grad():
        through(stream.chain, k, hidden, given).backward(gradient)  # type: ignore[no-untyped-call]
    return hidden


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise ValueError("no gradient of the objective reaches the blocks, so this model cannot be streamed; leave --stream out")
    return _finite(tensor.grad, "the gradient of the objective")


def _finite(tensor: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{what} is NaN or infinite; check the weights and the calibration data")
    return tensor


def _sums(stream: Stream, k: int) -> None:
    units = stream.chain.units_of[stream.chain.blocks[k]]

    def drive(b: int, draw: int, visit: Visit) -> None:
        network, batch, given = stream.chain.network, stream.part.batches[b], _given(stream, "estimate")[b]
        if stream.flow.objective is None:
            nothing = torch.empty(0)
            with torch.no_grad(), watch_inputs(network, batch, units, lambda use, rows: visit(use, rows, nothing)):
                through(stream.chain, k, _spilled(stream, f"estimate-h{k}-{b}"), given)
        else:
            with watch_gradients(network, batch, units, visit):
                _drive_back(stream, k, b, draw, given)

    _tables(stream, stream.chain.blocks[k], drive)
    if any(unit.kind == "expert" for unit in units):
        stream.steps(_tokens_step(stream.chain.blocks[k]), partial(_count_tokens, stream, k))


@torch.no_grad()
def _count_tokens(stream: Stream, k: int) -> Floats:
    """The tokens that reach each unit of block k that is an expert; NaN for the other units."""
    units = stream.chain.units_of[stream.chain.blocks[k]]
    count = {unit.name: 0 for unit in units if unit.kind == "expert"}

    def visit(use: Use, rows: Rows) -> None:
        count[use.unit.name] += rows.x.shape[1] if use.matrix == 0 else 0

    given = _given(stream, "estimate")
    experts = [unit for unit in units if unit.name in count]
    with opened(stream.chain, stream.read, stream.chain.blocks[k]):
        for b, batch in enumerate(stream.part.batches):
            with watch_inputs(stream.chain.network, batch, experts, visit):
                through(stream.chain, k, _spilled(stream, f"estimate-h{k}-{b}"), given[b])
    return np.array([count.get(unit.name, np.nan) for unit in units], dtype=np.float64)


def _sums_shell(stream: Stream) -> None:
    units, depth = stream.chain.units_of[SHELL], len(stream.chain.blocks)

    def drive(b: int, draw: int, visit: Visit) -> None:
        network, batch = stream.chain.network, stream.part.batches[b]
        if stream.flow.objective is None:
            nothing = torch.empty(0)
            watched = watch_inputs(network, batch, units, lambda use, rows: visit(use, rows, nothing))
            with torch.no_grad(), watched, leaving(stream.chain, batch, _spilled(stream, f"estimate-h{depth}-{b}")):
                pass
        else:
            with watch_gradients(network, batch, units, visit):
                _drive_out(stream, b, draw)

    _tables(stream, SHELL, drive)


def _tables(stream: Stream, path: str, drive: Callable[[int, int, Visit], None]) -> None:
    """The tables of the units at `path`, (batches, units, formats), as one step."""
    network, units = stream.chain.network, stream.chain.units_of[path]

    def table(b: int) -> Floats:
        passage = partial(Passage, network, stream.renderings, units, stream.formats, stream.part.batches[b])
        draws = range(draws_of(stream.flow, network))
        mean: Floats = np.mean([batch_sums(stream.flow, passage(partial(drive, b, draw))) for draw in draws], axis=0)
        return mean

    def compute() -> Floats:
        _given(stream, "estimate")  # opens the shell, so before the block is open
        with opened(stream.chain, stream.read, path):
            return np.stack([table(b) for b in range(len(stream.part.batches))])

    if units:
        stream.steps(_step(path), compute)


def _steps_of(stream: Stream, k: int | None) -> tuple[str, ...]:
    """What the sums of block k, or of the shell for None, have the stream's steps remember."""
    path = SHELL if k is None else stream.chain.blocks[k]
    units = stream.chain.units_of[path]
    return (_step(path),) * bool(units) + (_tokens_step(path),) * any(unit.kind == "expert" for unit in units)


def _note(stream: Stream, task: str) -> None:
    journal(f"{stream.spill.folder.stem} {task}")


def _step(path: str) -> str:
    return f"sums of {path or 'the shell'}"


def _tokens_step(path: str) -> str:
    return f"tokens that reach the experts of {path}"


def _absent() -> Floats:
    raise KeyError("a task of the stream has not been done")
