"""Progress bars on standard error, one for each stage of the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .jobs.progress import Tell

STAGES = {
    "load": "loading the model",
    "inspect": "inspecting the model",
    "render": "quantizing",
    "estimate": "measuring sensitivity",
    "estimate until stable": "measuring until stable",
    "stream": "streaming blocks",
    "spikes": "looking for spikes",
    "solve": "solving",
    "execute": "executing the plan",
    "verify": "verifying",
    "sweep": "sweeping",
    "download": "downloading",
    "delete": "deleting",
}


@contextmanager
def progress_bars() -> Iterator[Tell]:
    """A bar for each stage, on standard error; they stay there when the stage is done."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell
