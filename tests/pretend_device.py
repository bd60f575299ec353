"""A device that this machine does not have, for tests of code that runs on accelerators.

    plug_in()            from now on torch has a device called `pretend`; before the first backward pass of the process
    available(False)     torch.accelerator does not find it any more (it does once it is plugged in)
    without_float64()    while open, it refuses float64, as Apple's MPS does

A tensor on it is a `Pretended`, which holds an ordinary tensor that no one else sees: each operation is done on what is held,
by the CPU's own kernels, so that results are the same to the last bit. What CUDA refuses is refused in the same way, with a
RuntimeError: an operation between tensors of this device and of the CPU, but for copies, single numbers of no dimension in
elementwise operations, and indices; random numbers from a CPU's generator; and, by torch itself, `numpy()` and saving.

It hooks into torch for good, and autograd has to know all devices before it is first used: tests run it in a process of its
own (see `test_device.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

NAME = "pretend"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._copy_from.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
PRIVATE = {aten.linalg_cholesky_ex.L}  # torch.linalg.cholesky resizes a tensor that it keeps to itself
_refused: set[torch.dtype] = set()


class Pretended(Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        if held.dtype in _refused:
            raise TypeError(f"the device {NAME!r} has no {held.dtype}")
        make: Any = Tensor._make_wrapper_subclass
        made: Pretended = make(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """What makes `module.to(device)` keep its parameters what they are, so that tied ones stay tied, as on real devices."""
        return ["held"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> Pretended:
        return cls(inner["held"])

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{NAME}:{self.held!r}"


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func` on what the arguments hold; new tensors are on the device unless the arguments name another."""
    known: dict[int, Tensor] = {}  # by what it holds, or itself: each tensor that was given

    def held(tensor: Tensor) -> Tensor:
        inside = tensor.held if isinstance(tensor, Pretended) else tensor
        known[id(inside)] = tensor
        return inside

    held_args = [_each(value, held) for value in args]
    held_kwargs = {name: _each(value, held) for name, value in kwargs.items()}
    _refuse_mixture(func, args, kwargs, list(known.values()))
    if func is aten._fused_sdp_choice.default:
        return 0  # attention is unfused, as it is where a device has no kernel of its own for it
    here = torch.device(kwargs.get("device") or NAME).type == NAME
    if "device" in kwargs and here:
        held_kwargs["device"] = "cpu"

    def out(tensor: Tensor) -> Tensor:
        given = known.get(id(tensor))  # what was changed in place is itself
        if given is None:
            return Pretended(tensor) if here else tensor
        resized = given.shape != tensor.shape and func not in PRIVATE
        assert not resized, f"{func} resizes a tensor, which no one outside would see"
        return given

    return _each(func(*held_args, **held_kwargs), out)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)([_each(one, change) for one in value]) if type(value) in (list, tuple) else value


def _refuse_mixture(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> None:
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu' ({func})")
    strangers = [tensor for tensor in given if not isinstance(tensor, Pretended)]
    if not strangers or func in COPIES:
        return
    if func in INDEXED:  # indices may be on the CPU
        strangers = [tensor for tensor in strangers if any(tensor is value for value in (args[0], *args[2:]))]
    elementwise = func in INDEXED or torch.Tag.pointwise in func.tags
    for tensor in strangers:
        if tensor.dim() > 0 or not elementwise:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {NAME} and "
                f"{tensor.device} ({func}, {tuple(tensor.shape)})"
            )


class _Backend:
    """What torch asks a device's module."""

    def __init__(self) -> None:
        self.there = True

    def is_available(self) -> bool:
        return self.there

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass  # it has no random numbers of its own

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


_backend = _Backend()
_kernels: list[torch.library.Library] = []  # registered as long as this lives


def plug_in() -> None:
    """Give torch the device."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    class Hook(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return _backend.there

        def has_primary_context(self, index: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    _setup_privateuseone_for_python_backend(NAME, _backend, Hook())
    make: Any = torch.library.Library
    library = make("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("silu_backward", _silu_backward, "PrivateUse1")
    for name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace"):  # else made empty and then resized
        library.impl(name, partial(_made, name), "PrivateUse1")
    _kernels.append(library)


def available(there: bool) -> None:
    """Whether torch.accelerator finds the device."""
    _backend.there = there


@contextmanager
def without_float64() -> Iterator[None]:
    _refused.add(torch.float64)
    try:
        yield
    finally:
        _refused.clear()


def _empty(size: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Pretended(torch.empty(size, dtype=dtype))


def _empty_strided(size: list[int], stride: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype))


def _made(name: str, *given: Any, device: Any = None, **options: Any) -> Tensor:
    base, _, overload = name.partition(".")
    return Pretended(getattr(getattr(aten, base), overload or "default")(*given, **options))


def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """The CPU and CUDA have it as one kernel; a device that does not say so gets it in pieces, with another last digit."""
    return _run(aten.silu_backward.default, (gradient, x), {})  # type: ignore[no-any-return]


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    inside = [value.held if isinstance(value, Pretended) else value for value in (source, target)]
    inside[1].copy_(inside[0])
    return target
