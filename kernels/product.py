"""Products straight from packed words, and which back end computes them.

    matmul(x, W)             y = x W^T + bias             W: FieldPlanes or GroupMixed
    moe_matmul(x, experts)   y[t * k + j] = weight[t, j] * x[t] W_e^T,  e = chosen[t, j]             experts: ExpertMixed

    back end    computes with                                  where
    triton      Triton kernels                                 NVIDIA GPUs from compute capability 8.0
    interpret   the same, in Triton's interpreter              any CPU, very slowly: for tests (TRITON_INTERPRET=1)
    c           the compiled module of kernels/cpu             CPUs, where it could be built
    torch       unpack, then torch.matmul                      everywhere

`auto` takes the first that serves the device, once a process. Activations in fp64, and those that a gradient is asked
of, go to torch, the only one that computes these.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Protocol, cast

import torch
from torch import Tensor

from .layout import FieldPlanes
from .mixed import ExpertMixed, GroupMixed

# name -> (the module with its functions, the kind of device it serves; "": any)
BACKENDS = {
    "triton": (".triton.launch", "cuda"),
    "interpret": (".triton.interpreted", "cpu"),
    "c": (".cpu.compiled", "cpu"),
    "torch": (".plain", ""),
}
AUTOMATIC = ("triton", "c", "torch")
INDICES = (torch.int64, torch.int32)
ACTIVATIONS = (torch.float16, torch.bfloat16, torch.float32)


class Backend(Protocol):
    """What a back end's module holds. Activations are (rows, in), contiguous, one of ACTIVATIONS, at least one row."""

    def missing(self, device: torch.device) -> str | None:
        """Why this back end cannot compute on `device`; None when it can."""

    def product(self, x: Tensor, planes: FieldPlanes, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
        """(rows, out)."""

    def group_mixed(self, x: Tensor, mixed: GroupMixed, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
        """(rows, out)."""

    def expert_mixed(self, x: Tensor, experts: ExpertMixed, chosen: Tensor, out_dtype: torch.dtype) -> Tensor:
        """x (T, in) and chosen (T, k) int64: (T * k, out)."""

    def transposed_numbers(self, planes: FieldPlanes) -> Tensor:
        """The numbers of a matrix, fp32 (in, out): those of `reference.transposed_numbers`, to the last bit."""

    def transposed_change(self, planes: FieldPlanes, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers less `weight`, fp32 (in, out), subtracted in fp32 and cast to `dtype`."""


def matmul(
    x: Tensor,
    weight: FieldPlanes | GroupMixed,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    deterministic: bool = True,
    int8_activations: bool = False,
    backend: str = "auto",
) -> Tensor:
    """x (..., in) times the matrix transposed, plus `bias` (out,): (..., out) in `out_dtype` (None: that of x).

    Deterministic: two calls give the same bits; otherwise a GPU may add in any order. `int8_activations`: x is rounded to int8
    with a step for each run of 128 inputs or a group, and multiplied in integers, faster and about 1 % off; back end c only.
    Raises ValueError for shapes or dtypes that do not fit, and for a back end that cannot serve the device.
    """
    backend = _check(x, weight.inputs, weight.device, backend, out_dtype)
    if bias is not None and tuple(bias.shape) != (weight.outputs,):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} does not fit {weight.outputs} outputs")
    rows = x.reshape(math.prod(x.shape[:-1]), weight.inputs).contiguous()
    dtype = x.dtype if out_dtype is None else out_dtype
    if rows.numel() == 0 or weight.outputs == 0:
        y = torch.zeros(rows.shape[0], weight.outputs, dtype=dtype, device=x.device)
    elif int8_activations:
        y = _int8_product(rows, weight, dtype, backend)
    elif isinstance(weight, GroupMixed):
        y = chosen_backend(backend, x.device).group_mixed(rows, weight, dtype, deterministic)
    else:
        y = chosen_backend(backend, x.device).product(rows, weight, dtype, deterministic)
    y = y.view(*x.shape[:-1], weight.outputs)
    return y if bias is None else y + bias.to(dtype)


def _int8_product(rows: Tensor, weight: FieldPlanes | GroupMixed, dtype: torch.dtype, backend: str) -> Tensor:
    name = automatic(rows.device.type) if backend == "auto" else backend
    if name != "c" or isinstance(weight, GroupMixed):
        raise ValueError(
            "int8 activations need the compiled module on a CPU and a matrix of one width; leave them out "
            f"(the back end here is {name!r})"
        )
    from .cpu.compiled import product_int8

    chosen_backend(name, rows.device)
    return product_int8(rows, weight, dtype)


def moe_matmul(
    x: Tensor,
    experts: ExpertMixed,
    chosen: Tensor,
    weights: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """For tokens x (T, in) and their experts `chosen` (T, k): (T * k, out), row t * k + j of expert chosen[t, j], times `weights`
    (T, k) where given. Raises ValueError as `matmul` does, and for experts that are not there (looked for on the CPU only)."""
    backend = _check(x, experts.inputs, experts.words.device, backend, out_dtype)
    if x.dim() != 2 or chosen.dim() != 2 or chosen.shape[0] != x.shape[0] or chosen.dtype not in INDICES:
        raise ValueError(f"tokens {tuple(x.shape)} and chosen experts {tuple(chosen.shape)} must be (T, in) and (T, k) integers")
    if weights is not None and weights.shape != chosen.shape:
        raise ValueError(f"weights {tuple(weights.shape)} must be of the shape of the chosen experts, {tuple(chosen.shape)}")
    dtype = x.dtype if out_dtype is None else out_dtype
    if chosen.numel() == 0 or experts.outputs == 0 or experts.inputs == 0:
        return torch.zeros(chosen.numel(), experts.outputs, dtype=dtype, device=x.device)
    if x.device.type == "cpu" and not 0 <= int(chosen.min()) <= int(chosen.max()) < experts.experts:
        raise ValueError(f"a token chose an expert outside 0 .. {experts.experts - 1}")
    y = chosen_backend(backend, x.device).expert_mixed(x.contiguous(), experts, chosen.long(), dtype)
    return y if weights is None else y * weights.reshape(-1, 1).to(dtype)


def transposed_numbers(planes: FieldPlanes, backend: str = "auto") -> Tensor:
    """The numbers of a matrix, fp32 (in, out), the same on every back end."""
    return chosen_backend(backend, planes.words.device).transposed_numbers(planes)


def transposed_change(planes: FieldPlanes, weight: Tensor, dtype: torch.dtype = torch.float32, backend: str = "auto") -> Tensor:
    """dW transposed: the numbers of a matrix less `weight`, fp32 (in, out), subtracted in fp32 and cast to `dtype`; the same on
    every back end. Raises ValueError where the shapes differ."""
    if tuple(weight.shape) != (planes.inputs, planes.outputs):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} cannot be taken from one of {(planes.inputs, planes.outputs)}")
    return chosen_backend(backend, planes.words.device).transposed_change(planes, weight, dtype)


def dequantized(planes: FieldPlanes, dtype: torch.dtype, backend: str = "auto") -> Tensor:
    """The numbers of a matrix, (out, in) in `dtype`: computed in fp32 and cast."""
    return transposed_numbers(planes, backend).to(dtype).T


def chosen_backend(name: str, device: torch.device) -> Backend:
    """The back end called `name`, or the first of AUTOMATIC that serves `device`. Raises ValueError with the reason why not."""
    if name == "auto":
        name = automatic(device.type)
    backend = _load(name)
    reason = backend.missing(device)
    if reason is not None:
        raise ValueError(f"the back end {name!r} cannot compute on {device}: {reason}")
    return backend


@functools.cache
def automatic(device_type: str) -> str:
    """The name of the back end that `auto` means on a kind of device; chosen once a process."""
    device = torch.device(device_type)
    return next(name for name in AUTOMATIC if BACKENDS[name][1] in ("", device_type) and _load(name).missing(device) is None)


@functools.cache
def _load(name: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"unknown back end {name!r}; known: auto, {', '.join(BACKENDS)}")
    return cast(Backend, importlib.import_module(BACKENDS[name][0], __package__))


def _check(x: Tensor, inputs: int, device: torch.device, backend: str, out_dtype: torch.dtype | None) -> str:
    """The back end to ask for. Raises ValueError for activations that none can take."""
    if backend != "auto":
        _load(backend)
    if x.dim() == 0 or x.shape[-1] != inputs:
        raise ValueError(f"activations of shape {tuple(x.shape)} do not fit a matrix of {inputs} inputs")
    if x.device != device:
        raise ValueError(f"activations are on {x.device} and the packed words on {device}; move them to one device")
    if backend == "auto" and (x.dtype == torch.float64 or (x.requires_grad and torch.is_grad_enabled())):
        backend = "torch"
    if x.dtype not in ACTIVATIONS and not (x.dtype == torch.float64 and backend == "torch"):
        raise ValueError(f"activations must be fp16, bf16 or fp32, not {x.dtype}; cast them first")
    if backend not in ("auto", "torch") and x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"the back end {backend!r} computes no gradients; ask for 'torch' or 'auto', or compute under no_grad")
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise ValueError(f"products are numbers in fp16, bf16 or fp32, not {out_dtype}; convert them afterwards")
    return backend
