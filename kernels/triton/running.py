"""Launches: every kernel of this folder starts here, and the partial sums of a product become its result here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fields import codes, jit

# Triton decides whether it interprets when it is imported, and again for each kernel.
INTERPRETED = not any(isinstance(each, triton.runtime.JITFunction) for each in (tl.sum, codes))
INTERPRETED_PROCESSORS = 2
SUMMED = 1024
DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def run(
    kernel: object,
    grid: tuple[int, ...],
    arguments: Mapping[str, Tensor | int],
    constants: Mapping[str, object],
    warps: int = 4,
    stages: int = 2,
) -> None:
    """Start `kernel` on the device of its arguments."""
    tensor = next(each for each in arguments.values() if isinstance(each, Tensor))
    with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
        kernel[grid](**arguments, **constants, num_warps=warps, num_stages=stages)  # type: ignore[index]


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of `device`; the interpreter has few, for each program is slow."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """In what activations of `dtype` and weights are multiplied. The interpreter takes bfloat16 for integers: float32 there."""
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else DTYPES[dtype]


@jit
def keep(y_ptr: tl.tensor, offsets: tl.tensor, values: tl.tensor, mask: tl.tensor, ATOMIC: tl.constexpr) -> None:
    """Write float32 `values` in the dtype of `y_ptr`, or add them to what is there."""
    if ATOMIC:
        tl.atomic_add(y_ptr + offsets, values, mask=mask, sem="relaxed")
    else:
        tl.store(y_ptr + offsets, values.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def sum_kernel(parts_ptr: tl.tensor, y_ptr: tl.tensor, numbers: tl.tensor, split: tl.tensor, SIZE: tl.constexpr) -> None:
    """y[i] = sum over s of parts[s, i], one after another: parts float32 (split, numbers), y (numbers,)."""
    offsets = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = offsets < numbers
    total = tl.zeros((SIZE,), tl.float32)
    for part in range(split):
        total += tl.load(parts_ptr + tl.cast(part, tl.int64) * numbers + offsets, mask=mask, other=0)
    tl.store(y_ptr + offsets, total.to(y_ptr.dtype.element_ty), mask=mask)


def split_product(
    rows: int,
    outputs: int,
    split: int,
    out_dtype: torch.dtype,
    deterministic: bool,
    like: Tensor,
    launch: Callable[[Tensor, bool], None],
) -> Tensor:
    """(rows, outputs) in `out_dtype` from `launch(y, atomic)`, whose programs each add up one of `split` parts of the inputs.

    One part: written to the result. More, deterministic: y is float32 (split, rows, outputs), then summed in order. More, not
    deterministic: added to float32 zeros in whatever order the programs end.
    """
    if split == 1:
        y = torch.empty(rows, outputs, dtype=out_dtype, device=like.device)
        launch(y, False)
        return y
    if not deterministic:
        y = torch.zeros(rows, outputs, dtype=torch.float32, device=like.device)
        launch(y, True)
        return y.to(out_dtype)
    parts = torch.empty(split, rows, outputs, dtype=torch.float32, device=like.device)
    launch(parts, False)
    y = torch.empty(rows, outputs, dtype=out_dtype, device=like.device)
    grid = (-(-y.numel() // SUMMED),)
    run(sum_kernel, grid, {"parts_ptr": parts, "y_ptr": y, "numbers": y.numel(), "split": split}, {"SIZE": SUMMED})
    return y
