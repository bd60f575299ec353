"""Products of large matrices in bf16, where the processor multiplies bf16 several times faster than float32.

Both factors, and the gradients that weigh the product, are rounded at random, and a squared slope is a sum over hundreds of
rows, so that a loss moves by less than a hundredth (the tests hold it to that on small matrices, where least averages out).
Small products stay in float32: they gain nothing.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LARGE = 1 << 16  # entries of dW


def factor_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which rows `x` are multiplied by a change of the (out, in) `weight`."""
    return torch.bfloat16 if weight.numel() >= LARGE and x.device.type == "cpu" and multiplies_bf16() else torch.float32


@cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bf16."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
