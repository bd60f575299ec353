"""Where torch computes: chosen once, before anything is loaded, from what torch finds on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device called `name` (`cpu`, `cuda`, `cuda:1`, `mps`, ...); for `auto` this machine's accelerator, or the CPU where
    torch finds none. Raises UsageError for a device that is not there."""
    found = torch.accelerator.current_accelerator(check_available=True)
    here = ["cpu"]
    if found is not None:
        here += [f"{found.type}:{index}" for index in range(torch.accelerator.device_count())]
        if name in ("auto", found.type):
            name = f"{found.type}:{torch.accelerator.current_device_index()}"
    elif name == "auto":
        name = "cpu"
    if name not in here:
        raise UsageError(f"torch has no device {name!r} on this machine; choose one of: {', '.join(['auto', *here])}")
    return torch.device(name)


def free_bytes(device: torch.device) -> float:
    """Memory of `device` that is free now; infinite where torch cannot tell, so that whatever is asked for is taken to fit."""
    if device.type == "cpu":
        import psutil

        return float(psutil.virtual_memory().available)
    try:
        return float(torch.accelerator.get_memory_info(device)[0])
    except (RuntimeError, NotImplementedError):
        return math.inf


@contextmanager
def full_precision() -> Iterator[None]:
    """While open, products and convolutions of float32 are done in float32: on CUDA torch else rounds the factors of
    convolutions to TF32, which is coarser than some of the formats that are measured, and than what kernels are checked to."""
    cudnn: Any = torch.backends.cudnn
    backends = (torch.backends.cuda.matmul, cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
