"""A unit in a format, made once: what the profile measures, what is verified and what is written to disk are these words.

A rendering depends on the unit, the format and the untouched model's second moments only, never on the formats of other
units. `Renderings` keeps each in a file of its own the moment it is made, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..kernels.formats import FORMATS, Format
from ..kernels.layout import opened
from ..kernels.packing import PackedWeight
from ..kernels.product import transposed_change, transposed_numbers
from ..kernels.rounding import Factor, inverse_factor, round_gptq, round_nearest
from .calibration import Part
from .moments import Moments, collect_moments
from .network import Network
from .progress import Progress, silent
from .units import Unit

Rounding = Literal["gptq", "nearest"]
Rendered = PackedWeight | Tensor  # packed, or cast to a float type
RENDER_VERSION = 1  # raised when the arithmetic of rounding changes: old renderings are then made anew
ENTRIES_AT_ONCE = 1 << 20
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def rendered_transposed(rendered: Rendered) -> Tensor:
    """The numbers of a rendering, float32 (in, out)."""
    if isinstance(rendered, PackedWeight):
        return transposed_numbers(opened(rendered))
    return rendered.to(torch.float32).flatten(1).T


def rendered_slices(rendered: Rendered, weight: Tensor, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Tensor]]:
    """(rows, dW transposed) over the (out, in) matrix in slices that stay in cache: dW = rendering - `weight` in float32, each
    slice (in, rows) in `dtype`."""
    outputs, inputs = weight.shape
    step = max(32, ENTRIES_AT_ONCE // max(1, inputs) // 32 * 32)
    for start in range(0, outputs, step):
        rows = slice(start, min(start + step, outputs))
        own = weight[rows].T
        if isinstance(rendered, PackedWeight):
            yield rows, transposed_change(opened(rendered.outputs(rows.start, rows.stop)), own, dtype)
        else:
            yield rows, (rendered_transposed(rendered.flatten(1)[rows]) - own).to(dtype)


def unit_weights(module: nn.Module, unit: Unit) -> list[Tensor]:
    """The weights of `unit` in `module`, each (out, in)."""
    return [module.get_parameter(f"{matrix.module}.weight").detach().flatten(1) for matrix in unit.matrices]


class Renderings:
    """The renderings of one model with one rounding, one file a (unit, format) below `folder`.

    `fingerprint` names model, rounding and data. Safe from several processes: files are renamed into place.
    """

    def __init__(self, home: Path, network: Network, rounding: Rounding, part: Part | None) -> None:
        """Raises ValueError when GPTQ is asked for without data."""
        if rounding == "gptq" and part is None:
            raise ValueError("rounding by GPTQ needs calibration data; give some, or round to nearest")
        data = part.fingerprint if part is not None and rounding == "gptq" else ""
        key = f"{RENDER_VERSION} {network.inventory.fingerprint} {rounding} {data}"
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()
        self.network, self.rounding, self.part = network, rounding, part
        self.folder = home / "renderings" / self.fingerprint[:32]

    def __call__(self, unit: Unit, fmt: str) -> tuple[Rendered, ...]:
        """The matrices of `unit` in `fmt`. Raises KeyError when they have not been made."""
        if FORMATS[fmt].family == "float":
            return tuple(weight.to(FLOATS[fmt]) for weight in unit_weights(self.network.module, unit))
        path = self._path(unit, fmt)
        if not path.exists():
            raise KeyError(f"unit {unit.name!r} has not been rendered in {fmt}")
        tensors = {name: tensor.to(self.network.device) for name, tensor in load_file(path).items()}
        return tuple(
            PackedWeight(FORMATS[fmt], m.shape, tensors[f"{i}.words"], tensors[f"{i}.scales"], tensors.get(f"{i}.zeros"))
            for i, m in enumerate(unit.matrices)
        )

    def make(self, wanted: Sequence[tuple[Unit, str]], progress: Progress = silent) -> None:
        """Render every (unit, format) of `wanted` that is not there yet."""
        missing = self.missing(wanted)
        units = [unit for unit in self.network.inventory.units if unit.name in missing]
        moments = Moments({}, {})
        if units and self.rounding == "gptq" and self.part is not None:
            moments = collect_moments(self.network, units, self.part, progress)
        self.round(missing, moments, progress)

    def files(self, units: Sequence[Unit], formats: Sequence[str]) -> list[Path]:
        """Where the renderings of `units` lie, or will."""
        return [self._path(unit, fmt) for unit in units for fmt in formats if FORMATS[fmt].family == "int"]

    def missing(self, wanted: Sequence[tuple[Unit, str]]) -> dict[str, list[Format]]:
        """The int formats of `wanted` that have no file yet, by unit."""
        found: dict[str, list[Format]] = {}
        for unit, fmt in wanted:
            if FORMATS[fmt].family == "int" and not self._path(unit, fmt).exists():
                found.setdefault(unit.name, []).append(FORMATS[fmt])
        return found

    def round(self, missing: Mapping[str, list[Format]], moments: Moments, progress: Progress = silent) -> None:
        """Round the units of `missing`, whose weights must be there, by `moments` where these know them; one file each."""
        units = [unit for unit in self.network.inventory.units if unit.name in missing]
        if not units:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        site, factor = "", None
        for index, unit in enumerate(units):
            progress("render", index, len(units))
            made: dict[str, list[PackedWeight]] = {}
            for matrix, weight in zip(unit.matrices, unit_weights(self.network.module, unit), strict=True):
                at = moments.site.get(matrix.module, "")
                if at and unit.kind != "embedding":
                    if factor is None or at != site:
                        site, factor = at, inverse_factor(moments.second[at])
                    for packed in _gptq_by_group(weight, factor, missing[unit.name]):
                        made.setdefault(packed.format.name, []).append(packed)
                else:
                    for wanted_format in missing[unit.name]:
                        made.setdefault(wanted_format.name, []).append(round_nearest(weight, wanted_format))
            for name, matrices in made.items():
                self._save(unit, name, matrices)
        progress("render", len(units), len(units))

    def _path(self, unit: Unit, fmt: str) -> Path:
        return self.folder / f"{unit.name}@{fmt}.safetensors"

    def _save(self, unit: Unit, fmt: str, matrices: Sequence[PackedWeight]) -> None:
        tensors = {f"{i}.{name}": tensor.cpu() for i, packed in enumerate(matrices) for name, tensor in packed.tensors().items()}
        path = self._path(unit, fmt)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            save_file(tensors, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _gptq_by_group(weight: Tensor, factor: Factor, formats: Sequence[Format]) -> list[PackedWeight]:
    """Formats of one group size go through GPTQ's loop together."""
    sizes = dict.fromkeys(fmt.group_size for fmt in formats)
    return [packed for size in sizes for packed in round_gptq(weight, factor, [fmt for fmt in formats if fmt.group_size == size])]
