"""The back end of the C module: products straight from packed words, in fp32, on the CPU.

The module is compiled when bitplan is installed, where a C compiler is found, and picks AVX-512, AVX2, NEON or plain C
when it runs. Work is shared among as many threads as torch has, by outputs; the sums are the same for any number,
but from DENSE_FROM rows on, where torch multiplies.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..layout import SCALE_TYPES, FieldPlanes, Fields
from ..mixed import ExpertMixed, GroupMixed

WIDEST_TILE = 64  # outputs; threads get whole tiles
DENSE_FROM = 384  # rows from which unpacking once for torch's own product is faster
WORTH_A_THREAD = 1 << 18  # products of a weight and an activation


def missing(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "its kernels run on CPUs"
    if _module() is None:
        return "its module was not built when bitplan was installed; install a C compiler (gcc or clang), then bitplan again"
    return None


def instruction_sets() -> list[str]:
    """The instruction sets that this processor runs, best first."""
    return list(_sets())


def product(x: Tensor, planes: FieldPlanes, out_dtype: torch.dtype, deterministic: bool, *, instructions: str = "") -> Tensor:
    if x.shape[0] >= DENSE_FROM:
        return (x.float() @ transposed_numbers(planes, instructions=instructions)).to(out_dtype)
    y = torch.zeros(x.shape[0], planes.outputs)
    _add(y, x.float(), planes, False, instructions)
    return y if out_dtype == torch.float32 else y.to(out_dtype)


def product_int8(x: Tensor, planes: FieldPlanes, out_dtype: torch.dtype, *, instructions: str = "") -> Tensor:
    """The product with x rounded to int8, in integers: runs of at most 128 inputs within a group, each in steps of its largest
    magnitude / 127."""
    y = torch.zeros(x.shape[0], planes.outputs)
    _add(y, x.float(), planes, True, instructions)
    return y.to(out_dtype)


def group_mixed(x: Tensor, mixed: GroupMixed, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
    y = torch.zeros(x.shape[0], mixed.outputs)
    by_group = x.float().view(x.shape[0], -1, mixed.classes[0][0].group_size)
    for planes, groups in mixed.classes:
        _add(y, by_group[:, groups.long()].flatten(1), planes, False, "")
    return y.to(out_dtype)


def expert_mixed(x: Tensor, experts: ExpertMixed, chosen: Tensor, out_dtype: torch.dtype) -> Tensor:
    x = x.float()
    y = torch.empty(chosen.numel(), experts.outputs)
    given = chosen.reshape(-1)
    order = given.sort(stable=True).indices
    ends = torch.bincount(given, minlength=experts.experts).cumsum(0)
    scales, zeros = experts.scales.contiguous(), None if experts.zeros is None else experts.zeros.contiguous()
    told = _told(experts.words, (0, experts.outputs), (), experts.inputs, experts.outputs, scales, zeros, experts.group_size)
    base, bits = experts.base.contiguous(), experts.bits.contiguous()
    lists = (base.data_ptr(), bits.data_ptr(), order.data_ptr(), ends.data_ptr())
    kind, slots = _kind(""), chosen.shape[1]

    def some(begin: int, end: int) -> None:
        _planes().experts(kind, x.data_ptr(), y.data_ptr(), begin, end, experts.experts, slots, *lists, told)

    _share(experts.outputs, len(given) * experts.inputs, some)
    return y.to(out_dtype)


def transposed_numbers(planes: FieldPlanes, *, instructions: str = "") -> Tensor:
    """The numbers of a matrix, float32 (in, out): those of `reference.transposed_numbers`, to the last bit."""
    return _dequantized(planes, None, torch.float32, instructions)


def transposed_change(planes: FieldPlanes, weight: Tensor, dtype: torch.dtype, *, instructions: str = "") -> Tensor:
    """The numbers less `weight`, both (in, out), in one pass: those of `plain.transposed_change`, to the last bit."""
    if dtype not in (torch.float32, torch.bfloat16):
        return _dequantized(planes, weight, torch.float32, instructions).to(dtype)
    return _dequantized(planes, weight, dtype, instructions)


def _dequantized(planes: FieldPlanes, minus: Tensor | None, dtype: torch.dtype, instructions: str) -> Tensor:
    numbers = torch.empty(planes.inputs, planes.outputs, dtype=dtype)
    kind, told = _kind(instructions), _matrix(planes)
    less = (0, 0)
    if minus is not None:
        minus = minus.float() if minus.stride(-1) == 1 else minus.float().contiguous()
        less = (minus.data_ptr(), minus.stride(0))

    def some(begin: int, end: int) -> None:
        _planes().dequantize(kind, *less, dtype == torch.bfloat16, numbers.data_ptr(), begin, end, told)

    _share(planes.outputs, planes.inputs, some)
    return numbers


def _add(y: Tensor, x: Tensor, planes: FieldPlanes, int8: bool, instructions: str) -> None:
    """y (rows, out) += x (rows, in) times the matrix transposed, in place."""
    x = x.contiguous()
    kind, told, rows = _kind(instructions), _matrix(planes), x.shape[0]

    def some(begin: int, end: int) -> None:
        _planes().product(kind, int8, x.data_ptr(), rows, y.data_ptr(), begin, end, told)

    _share(planes.outputs, rows * planes.inputs, some)


def _share(outputs: int, work_an_output: int, some: Callable[[int, int], None]) -> None:
    """Call `some(begin, end)` for runs of outputs that together are all of them, one run a thread."""
    threads = max(1, min(torch.get_num_threads(), outputs * work_an_output // WORTH_A_THREAD, -(-outputs // WIDEST_TILE)))
    if threads == 1:
        some(0, outputs)
        return
    each = -(-outputs // (threads * WIDEST_TILE)) * WIDEST_TILE
    runs = [(begin, min(begin + each, outputs)) for begin in range(0, outputs, each)]
    others = [_threads().submit(some, *run) for run in runs[1:]]
    some(*runs[0])
    for other in others:
        other.result()


def _matrix(planes: FieldPlanes) -> tuple[object, ...]:
    """What the module is told of a matrix, see `Matrix` in planes.h; made once a matrix, which keeps its tensors alive."""
    told = _TOLD.get(planes)
    if told is None:
        told = _TOLD[planes] = _matrix_told(planes)
    return told


_TOLD: WeakKeyDictionary[FieldPlanes, tuple[object, ...]] = WeakKeyDictionary()


def _matrix_told(planes: FieldPlanes) -> tuple[object, ...]:
    for tensor in (planes.words, planes.scales, planes.zeros):
        if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError("words, scales and zeros of neighbouring outputs must lie side by side; make them contiguous")
    strides = (planes.words.stride(0), planes.words.stride(1))
    return _told(
        planes.words, strides, planes.fields, planes.inputs, planes.outputs, planes.scales, planes.zeros, planes.group_size
    )


def _told(
    words: Tensor,
    strides: tuple[int, int],
    fields: Fields,
    inputs: int,
    outputs: int,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
) -> tuple[object, ...]:
    return (
        words.data_ptr(),
        *strides,
        bytes(width for width, _ in fields),
        bytes(low for _, low in fields),
        inputs,
        outputs,
        scales.data_ptr(),
        0 if zeros is None else zeros.data_ptr(),
        SCALE_TYPES.index(scales.dtype),
        scales.stride(-2),
        0 if zeros is None else zeros.stride(-2),
        group_size,
    )


def _kind(instructions: str) -> int:
    sets = _sets()
    if instructions and instructions not in sets:
        raise ValueError(f"this processor does not run {instructions!r}; it runs {', '.join(sets)}")
    return sets[instructions] if instructions else next(iter(sets.values()))


@functools.cache
def _sets() -> dict[str, int]:
    return {name: kind for kind, name in _planes().instruction_sets()}


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="bitplan-cpu")


def _planes() -> ModuleType:
    module = _module()
    assert module is not None, "`missing` was not asked"
    return module


@functools.cache
def _module() -> ModuleType | None:
    try:
        return importlib.import_module("._planes", __package__)
    except ImportError:
        return None
