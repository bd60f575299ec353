"""Matrices and memory for the tests of the Triton kernels, which are interpreted where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from bitplan.kernels.layout import FieldPlanes, pack
from bitplan.kernels.triton import running

BACKEND = "interpret" if running.INTERPRETED else "triton"
DEVICE = torch.device("cpu" if running.INTERPRETED else "cuda")
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 1e-6}
MARGIN = 4096  # elements on each side of a guarded tensor
Numbers = npt.NDArray[np.float64]


def numbers(codes: Tensor, scales: Tensor, zeros: Tensor | float, group_size: int) -> Numbers:
    """(code - zero) * scale in float64: (in, out)."""
    group = np.arange(codes.shape[0]) // group_size
    zero = zeros.double().numpy()[group] if isinstance(zeros, Tensor) else zeros
    result: Numbers = (codes.double().numpy() - zero) * scales.double().numpy()[group]
    return result


def matrix(
    bits: int,
    outputs: int,
    inputs: int,
    group_size: int,
    seed: int,
    *,
    order: Any = "block",
    dtype: torch.dtype = torch.float16,
    zeros: str = "between",
) -> tuple[FieldPlanes, Numbers]:
    """A random matrix and its numbers; zero points are "middle" (none are stored), "whole" or "between" whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-inputs // group_size)
    codes = torch.randint(0, 2**bits, (inputs, outputs), generator=generator)
    scales = (torch.rand(groups, outputs, generator=generator) + 0.25).to(dtype)
    if zeros == "middle":
        planes = pack(codes, bits, scales, None, group_size=group_size, order=order)
        return planes.to(DEVICE), numbers(codes, scales, 2.0 ** (bits - 1), group_size)
    points = torch.rand(groups, outputs, generator=generator) * 2**bits
    points = (points.floor() if zeros == "whole" else points).to(dtype)
    planes = pack(codes, bits, scales, points, group_size=group_size, order=order)
    return planes.to(DEVICE), numbers(codes, scales, points, group_size)


def activations(rows: int, inputs: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def exact(x: Tensor, weights: Numbers) -> Numbers:
    result: Numbers = x.double().cpu().numpy() @ weights
    return result


def apart(y: Tensor, expected: Numbers) -> float:
    """The distance relative to what is expected, unless that is zero; NaN, which no comparison passes, where y holds one."""
    return float(np.linalg.norm(y.double().cpu().numpy() - expected) / (np.linalg.norm(expected) or 1))


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 `x` as a kernel writes it in `dtype`: the interpreter cuts the end of a bfloat16 off instead of rounding."""
    if BACKEND == "interpret" and dtype == torch.bfloat16:
        x = (x.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return x.to(dtype)


def poison(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else 0x7F7F7F7F if dtype in (torch.int32, torch.int64) else 0x7F


class Guarded:
    """Memory with margins of poison on both sides."""

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = torch.full((numel + 2 * MARGIN,), poison(dtype), dtype=dtype, device=device)
        self.inside = self.memory[MARGIN : MARGIN + numel]

    def untouched(self) -> bool:
        margins = torch.cat([self.memory[:MARGIN], self.memory[-MARGIN:]])
        return bool((margins.isnan() if margins.is_floating_point() else margins == poison(margins.dtype)).all())


def watch(patch: pytest.MonkeyPatch) -> None:
    """Make the interpreter refuse any address that no argument of the launch owns, read ones included."""
    from triton.runtime.interpreter import interpreter_builder

    owned: list[tuple[int, int]] = []
    run = running.run

    def owning(kernel: Any, grid: Any, arguments: Any, *rest: Any) -> None:
        tensors = [each for each in arguments.values() if isinstance(each, Tensor)]
        last = [sum((size - 1) * step for size, step in zip(each.shape, each.stride(), strict=True)) for each in tensors]
        owned[:] = [(t.data_ptr(), t.data_ptr() + (end + 1) * t.element_size()) for t, end in zip(tensors, last, strict=True)]
        run(kernel, grid, arguments, *rest)

    def checked(name: str, pointer: int, masked: int) -> None:
        method = getattr(interpreter_builder, name)

        def check(*given: Any) -> Any:
            addresses = given[pointer].data[given[masked].data]
            inside = np.zeros(addresses.shape, dtype=bool)
            for start, stop in owned:
                inside |= (addresses >= start) & (addresses < stop)
            assert inside.all(), f"{name} at an address outside every argument"
            return method(*given)

        patch.setattr(interpreter_builder, name, check)

    patch.setattr(running, "run", owning)
    checked("create_masked_load", 0, 1)
    checked("create_masked_store", 0, 2)
    checked("create_atomic_rmw", 1, 3)


@contextmanager
def guarded(monkeypatch: pytest.MonkeyPatch, *given: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The `given` tensors between margins of poison, in their own strides, while whatever `torch.empty` allocates is poisoned and
    lies between such margins too; afterwards no margin may have changed. In the interpreter nothing outside may even be read."""
    kept = []

    def empty(*shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        kept.append(Guarded(int(np.prod(sizes)), dtype, device))
        return kept[-1].inside.view(*sizes)

    copies = []
    for tensor in given:
        each = Guarded(tensor.untyped_storage().nbytes() // tensor.element_size(), tensor.dtype, tensor.device)
        each.inside.copy_(tensor.new_empty(0).set_(tensor.untyped_storage()))
        copies.append(
            each.inside.as_strided(tensor.shape, tensor.stride(), each.inside.storage_offset() + tensor.storage_offset())
        )
        kept.append(each)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        if BACKEND == "interpret":
            watch(patch)
        yield tuple(copies)
    assert len(kept) > len(given)  # else nothing was allocated in the guarded way
    assert all(each.untouched() for each in kept)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Mapping[str, object]]]]:
    """(kernel, constants) of every launch."""
    launches: list[tuple[str, Mapping[str, object]]] = []
    run = running.run

    def recording(kernel: Any, grid: Any, arguments: Any, constants: Any, warps: int = 4, stages: int = 2) -> None:
        launches.append((kernel.__name__, constants))
        run(kernel, grid, arguments, constants, warps, stages)

    with monkeypatch.context() as patch:
        patch.setattr(running, "run", recording)
        yield launches
