"""native: what bitplan itself stores and runs. Everything in the palette; shared parameters are one unit already."""

from __future__ import annotations

from ...kernels.formats import Format
from ...sensitivity.units import Unit


def admits(unit: Unit, fmt: Format) -> bool:
    """Any integer format; its own float format, or a narrower one."""
    widths = {"fp32": 32, "fp16": 16, "bf16": 16}
    return fmt.family == "int" or fmt.name == unit.native or fmt.bits < widths[unit.native]


def tie(unit: Unit) -> str | None:
    """No two units need to agree."""
    return None
