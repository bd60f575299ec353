"""Bench: opened profile work, kept while a process works on it, so that a model is not loaded for each of its pieces."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from ...allocator.errors import ModelError
from ..schema import ProfileBody
from .progress import Tell

if TYPE_CHECKING:
    from ...allocator import SensitivityReport
    from ...allocator.profile_work import ProfileWork

ROOM = 2  # the profile that this worker leads, and one that it helps with


class Bench:
    def __init__(self, home: Path) -> None:
        self._home = home
        self._opened: OrderedDict[tuple[str, bool], ProfileWork] = OrderedDict()

    def open(self, job_id: str, body: ProfileBody, tell: Tell) -> SensitivityReport | ProfileWork:
        """The work of a profile job, opened now or before; the report where it is known already."""
        from ... import allocator
        from ...allocator import SensitivityReport

        key = job_id, body.stream
        if key not in self._opened:
            found = allocator.open_profile(body.profile_request(), home=self._home, progress=tell)
            if isinstance(found, SensitivityReport):
                return found
            while len(self._opened) >= ROOM:
                self._opened.popitem(last=False)
            self._opened[key] = found
        self._opened.move_to_end(key)
        return self._opened[key]

    def open_shared(self, job_id: str, body: ProfileBody, tell: Tell) -> SensitivityReport | ProfileWork:
        """The same, block by block where the model allows it, for several workers to share."""
        try:
            return self.open(job_id, body.model_copy(update={"stream": True}), tell)
        except ModelError:
            return self.open(job_id, body, tell)

    def clear(self, job_id: str) -> None:
        """Let go of a job that is done or given up."""
        for stream in (True, False):
            self._opened.pop((job_id, stream), None)


def can_be_shared(body: ProfileBody) -> bool:
    """Whether the metric allows it to measure block by block."""
    from ...allocator import METRICS

    return METRICS[body.metric].streams and body.until_stable is None and body.sibling is None
