"""The back end `triton`: kernels compiled for NVIDIA GPUs."""

from __future__ import annotations

import torch

try:
    from .products import expert_mixed, group_mixed, product, transposed_change, transposed_numbers
    from .running import INTERPRETED
except ImportError as error:
    # Only where there is no Triton: `missing` then says so, and nobody gets as far as a product.
    if error.name is None or error.name.partition(".")[0] != "triton":
        raise
    ABSENT = True
else:
    ABSENT = False

__all__ = [
    "ABSENT",
    "INTERPRETED",
    "expert_mixed",
    "group_mixed",
    "missing",
    "product",
    "transposed_change",
    "transposed_numbers",
]
LEAST = (8, 0)


def missing(device: torch.device) -> str | None:
    if ABSENT:
        return "Triton cannot be imported; install the package `triton`"
    if device.type != "cuda":
        return "Triton computes on NVIDIA GPUs only"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "PyTorch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST:
        return f"its compute capability is {capability[0]}.{capability[1]}, and the kernels need {LEAST[0]}.{LEAST[1]}"
    if INTERPRETED:
        return "TRITON_INTERPRET is set, so that no kernel is compiled; unset it, or ask for the back end 'interpret'"
    return None
