"""A profile as pieces of work, each of which leaves files behind and is found done by whoever asks again.

With the whole model in memory a task rounds one block's units in every format; with a model block by block the tasks are
those of `sensitivity/streaming.py`. What is left then is the report. A piece may be done by any process that has opened the
same request over the same files; no number depends on who did what, in which order, or after which death.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sensitivity import METRICS
from ..sensitivity.journal import journal
from ..sensitivity.moments import Moments, collect_moments
from ..sensitivity.progress import Progress, silent
from ..sensitivity.report import Floats, SensitivityReport
from ..sensitivity.routing import collect_routing
from ..sensitivity.spill import Spill
from ..sensitivity.streaming import Stream, gathered, tasks, tokens_by_unit
from ..sensitivity.study import Study
from ..sensitivity.units import Inventory, Unit
from ..sensitivity.unreached import fill_unreached
from .device import full_precision
from .errors import UsageError
from .home import StoredSteps, report_path, write_whole, writing
from .prepared import Prepared
from .request import ProfileRequest
from .solve import versions
from .stable import estimate_until_stable, tokens_in

if TYPE_CHECKING:
    from ..sensitivity.calibration import Part
    from ..sensitivity.estimate import Estimate
    from ..sensitivity.network import Network
    from .hollow import Hollow


@dataclass(frozen=True)
class Piece:
    """A task as others see it: `needs` are names of pieces, `reads` and `writes` files below the home folder. Pieces that are
    `chained` hardly wait for anything but one another."""

    name: str
    needs: tuple[str, ...]
    chained: bool
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


class ProfileWork:
    """The work on one request, opened: a model in memory, or a hollow one. `pieces` come each after those that it needs."""

    def __init__(self, request: ProfileRequest, prepared: Prepared, hollow: Hollow | None, home: Path) -> None:
        """Raises UsageError when the metric cannot be had of this model."""
        self.request, self.prepared, self.hollow, self.home = request, prepared, hollow, home
        self._began = time.perf_counter()
        inventory = prepared.loaded.network.inventory
        self.identity, self.formats = request.profile_id(inventory), request.palette(inventory)
        self.partial = home / "partial"
        self._steps = StoredSteps(self.partial / f"{self.identity}.steps")
        self._spill = Spill(self.partial / f"{self.identity}.spill")
        self._moments: Moments | None = None
        needs_data = prepared.calibration is not None and METRICS[request.metric].needs_data
        self._part = prepared.calibration.estimate if needs_data and prepared.calibration is not None else None
        with self._measuring():
            METRICS[request.metric].check(self._study(silent))  # before the weights are rounded, which takes longest

    @property
    def inventory(self) -> Inventory:
        return self.prepared.loaded.network.inventory

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(piece for piece, _ in self._runs.values())

    @property
    def tables(self) -> tuple[str, ...]:
        """The files below the home that the report is put together from, as far as pieces make them."""
        folder = str(self._steps.folder.relative_to(self.home))
        return tuple(name for piece in self.pieces for name in piece.writes if name.startswith(folder))

    def run(self, name: str, progress: Progress) -> None:
        """Do one piece; one that is done already is left alone. Raises UsageError, BitplanError when the disk is full."""
        with self._measuring():
            self._runs[name][1](progress)

    def complete(self, progress: Progress) -> SensitivityReport:
        """Do everything in order."""
        for index, piece in enumerate(self.pieces):
            if self.hollow is not None:
                progress("stream", index, len(self.pieces))
            self.run(piece.name, progress)
        if self.hollow is not None:
            progress("stream", len(self.pieces), len(self.pieces))
        return self.report(progress)

    def report(self, progress: Progress) -> SensitivityReport:
        """The report, kept; every piece must be done. What was kept on the way is let go."""
        inventory = self.prepared.loaded.network.inventory
        with self._measuring():
            estimate, settings, data = self._estimate(progress)
        report = SensitivityReport(
            id=self.identity,
            metric=self.request.metric,
            quantity=estimate.quantity,
            settings=settings,
            units=tuple(unit.name for unit in inventory.units),
            formats=self.formats,
            loss=estimate.loss,
            stderr=estimate.stderr,
            batches=estimate.batches,
            inventory_fingerprint=inventory.fingerprint,
            render_fingerprint=self.prepared.renderings.fingerprint,
            data_fingerprint=data,
            seed=self.request.seed,
            seconds=time.perf_counter() - self._began,
            versions=versions(),
            notes=estimate.notes,
        )
        write_whole(report_path(self.home, self.identity), json.dumps(report.to_json()).encode())
        journal(f"{self.identity} report")
        self._spill.clear()
        self._steps.finish()
        return report

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        try:
            with full_precision(), writing(self.home):
                yield
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _study(self, progress: Progress) -> Study:
        network, renderings = self.prepared.loaded.network, self.prepared.renderings
        return Study(network, renderings, self._part, self.formats, self.request.seed, self._steps, progress)

    @cached_property
    def _stream(self) -> Stream:
        assert self.hollow is not None
        study, chain = self._study(silent), self.hollow.chain
        flow, read = METRICS[self.request.metric].module.FLOW, self.hollow.read
        return Stream(chain, read, flow, study.renderings, study.data, study.formats, study.seed, self._spill, study.steps)

    @cached_property
    def _runs(self) -> dict[str, tuple[Piece, Callable[[Progress], None]]]:
        """By name: the piece, and how it is done."""
        if self.hollow is not None:
            found = {}
            for task in tasks(self._stream):
                tables = tuple(self._steps.path(step) for step in task.steps)
                reads, writes = self._below(task.reads), self._below((*task.writes, *tables))
                found[task.name] = Piece(task.name, task.needs, task.chained, reads, writes), _without_progress(task.run)
            return found
        blocks: dict[str, list[Unit]] = {}
        for unit in self.prepared.loaded.network.inventory.units:
            blocks.setdefault("shell" if unit.layer is None else str(unit.layer), []).append(unit)
        return {f"render {name}": self._rendering(f"render {name}", units) for name, units in blocks.items()}

    def _below(self, paths: Iterable[Path]) -> tuple[str, ...]:
        return tuple(str(path.relative_to(self.home)) for path in paths)

    def _rendering(self, name: str, units: list[Unit]) -> tuple[Piece, Callable[[Progress], None]]:
        made = self.prepared.renderings.files(units, self.formats)
        return Piece(name, (), True, (), self._below(made)), partial(self._render, name, units)

    def _render(self, name: str, units: list[Unit], progress: Progress) -> None:
        """Round the units in every format that is not there yet. The moments of all such units come from one pass."""
        renderings, every = self.prepared.renderings, self.prepared.loaded.network.inventory.units
        missing = renderings.missing([(unit, fmt) for unit in units for fmt in self.formats])
        if not missing:
            return
        todo = renderings.missing([(unit, fmt) for unit in every for fmt in self.formats])
        if self._moments is None:
            self._moments = Moments({}, {})
            if renderings.rounding == "gptq" and renderings.part is not None:
                wanted = [unit for unit in every if unit.name in todo]
                self._moments = collect_moments(self.prepared.loaded.network, wanted, renderings.part, progress)
        before = len(every) - len(todo)
        renderings.round(missing, self._moments, lambda stage, done, _total: progress(stage, before + done, len(every)))
        journal(f"{renderings.fingerprint[:32]} {name}")

    def _estimate(self, progress: Progress) -> tuple[Estimate, dict[str, Any], str]:
        """The estimate, the settings it was made with, and the fingerprint of its data."""
        request, network, part = self.request, self.prepared.loaded.network, self._part
        settings: dict[str, Any] = {"tokens": request.tokens, "calibration": request.calibration, "rounding": request.rounding}
        settings["device"] = str(network.device)
        study, self._moments = self._study(progress), None
        if self.hollow is not None:
            estimate = gathered(self._stream)
        elif request.until_stable is None or part is None:
            estimate = METRICS[request.metric].estimate(study)
        else:
            estimate, part = estimate_until_stable(request, study)
            settings |= {"until_stable": request.until_stable, "tokens_used": tokens_in(part)}
        if part is not None and network.inventory.family == "mixture-of-experts":
            tokens = _tokens_by_unit(network, part) if self.hollow is None else tokens_by_unit(self._stream)
            estimate = fill_unreached(estimate, network.inventory, tokens)
        return estimate, settings, "" if part is None else part.fingerprint


def _tokens_by_unit(network: Network, part: Part) -> Floats:
    return collect_routing(network, part).unit_counts(network.inventory.units)


def _without_progress(run: Callable[[], None]) -> Callable[[Progress], None]:
    return lambda progress: run()
