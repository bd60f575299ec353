"""SensitivityReport: the loss table of one model under one metric, with its error bars and where it comes from.

Values only; no torch. JSON in and out without loss: every float64 is written with the digits that read back to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SensitivityReport:
    """`loss[u, f]` is what storing unit u in format f costs, in `quantity`, other units untouched; shape (units, formats).

    `stderr` has the same shape, or is None where the metric has no sampling error. NaN marks a pair that the format
    does not admit; nothing else is NaN. `batches` is the number of independent batches behind each standard error.
    """

    id: str
    metric: str
    quantity: str
    settings: dict[str, Any]
    units: tuple[str, ...]
    formats: tuple[str, ...]
    loss: Floats
    stderr: Floats | None
    batches: int
    inventory_fingerprint: str
    render_fingerprint: str
    data_fingerprint: str
    seed: int
    seconds: float
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.units), len(self.formats))
        if self.loss.shape != shape or (self.stderr is not None and self.stderr.shape != shape):
            raise ValueError(f"a report over {shape[0]} units and {shape[1]} formats needs tables of shape {shape}")
        if np.any(self.loss < 0) or np.any(np.isinf(self.loss)):
            raise ValueError("a loss table must be finite and not negative")

    def to_json(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        document["units"], document["formats"] = list(self.units), list(self.formats)
        document["notes"] = list(self.notes)
        document["loss"] = _rows(self.loss)
        document["stderr"] = None if self.stderr is None else _rows(self.stderr)
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> SensitivityReport:
        stderr = document["stderr"]
        return cls(
            **{
                **document,
                "units": tuple(document["units"]),
                "formats": tuple(document["formats"]),
                "notes": tuple(document.get("notes", ())),
                "loss": np.array(document["loss"], dtype=np.float64),
                "stderr": None if stderr is None else np.array(stderr, dtype=np.float64),
            }
        )


def _rows(table: Floats) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in table]
