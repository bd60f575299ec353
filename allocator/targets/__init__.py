"""Targets: the engines a plan must load in. A target decides which formats a unit may take and which units must agree.

Bytes are counted as bitplan stores them, whatever the target; an engine's own layout is counted by its exporter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...kernels.formats import Format
from ...sensitivity.units import Unit
from . import native, vllm


@dataclass(frozen=True)
class Target:
    """`admits(unit, format)`: may the engine hold it so; `tie(unit)`: the name of the group that must agree, or None."""

    name: str
    summary: str
    admits: Callable[[Unit, Format], bool]
    tie: Callable[[Unit], str | None]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("native", "bitplan itself: every format, only shared parameters tied", native.admits, native.tie),
        Target("vllm", "vLLM: fused q/k/v and gate/up agree, all experts of a layer agree", vllm.admits, vllm.tie),
    )
}
