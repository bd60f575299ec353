"""The products that `kernels.py` checks and times: which, and how each is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

import kernel_checkout  # noqa: F401 (first)
from bitplan.kernels.layout import FieldPlanes, codes_of, nested_fields
from bitplan.kernels.mixed import ExpertMixed, GroupMixed, stack_experts
from bitplan.kernels.packing import FIELDS
from bitplan.kernels.reference import group_mixed_numbers, transposed_numbers
from bitplan.kernels.triton import running
from bitplan.kernels.triton.configs import MOST_GEMV_ROWS, Choice, select
from bitplan.kernels.triton.dequantize import dequantized
from bitplan.kernels.triton.gemm import gemm
from bitplan.kernels.triton.gemv import gemv
from bitplan.kernels.triton.products import expert_mixed, group_mixed, product

Kind = Literal["plain", "groups", "experts"]
SHAPES = ((11008, 4096), (28672, 8192), (4096, 4096), (14336, 4096), (4096, 14336))  # (out, in), the most telling ones first
BITS = (4, 2, 3, 8, 5, 6, 1, 7)
ROWS = (1, 16, 4, 64, 256)
GROUP = 128
# of one mean width, 4 bits, whatever the mixture
GROUP_WIDTHS, EXPERT_WIDTHS = (2, 4, 4, 6), (2, 2, 4, 4, 4, 4, 4, 8)
CHOSEN = 2  # experts of a token
CHANGES = (
    *(f"warps={count}" for count in (2, 4, 8)),
    *(f"stages={count}" for count in (2, 3, 4)),
    *(f"outputs={count}" for count in (64, 128, 256)),
    *(f"inputs={count}" for count in (32, 64, 128)),
    *(f"split={times}" for times in (0.25, 0.5, 2, 4)),
    *("atomics", "gemm", "dequantize"),
)


@dataclass(frozen=True)
class Case:
    """A product of `rows` with a matrix of `bits`, one width for plain ones, else those of its groups in turn or its experts;
    `change`: the one of CHANGES, or what else is compared with."""

    stage: str
    kind: Kind
    bits: tuple[int, ...]
    outputs: int
    inputs: int
    rows: int
    dtype: str = "float16"
    group: int = GROUP
    order: str = "block"
    change: str = ""

    @property
    def key(self) -> str:
        parts = asdict(self)
        parts["bits"] = "+".join(map(str, self.bits))
        return " ".join(str(part) for part in parts.values() if part != "")

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def bytes(self) -> int:
        """What must be moved: codes, a scale and a zero point a group in 16 bits, activations in and out."""
        groups = -(-self.inputs // self.group)
        bits = sum(self.bits) / len(self.bits)
        matrix = int(self.outputs * self.inputs * bits / 8) + 4 * self.outputs * groups
        if self.kind == "experts":
            return len(self.bits) * matrix + 2 * self.rows * (CHOSEN * self.outputs + self.inputs)
        return matrix + 2 * self.rows * (self.outputs + self.inputs)


def planes(
    bits: int,
    outputs: int,
    inputs: int,
    group: int,
    device: torch.device,
    order: str = "block",
    dtype: torch.dtype = torch.float16,
) -> FieldPlanes:
    """A random matrix. Random words are random codes, also where they pad the last inputs: nothing may come of those."""
    blocks, groups = -(-inputs // 32), -(-inputs // group)
    shape = (blocks, bits, outputs) if order == "block" else (bits, blocks, outputs)
    words = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=device)
    scales = (torch.rand(groups, outputs, device=device) * 0.02 + 0.005).to(dtype)
    zeros = (torch.rand(groups, outputs, device=device) * 2**bits).to(dtype)
    if order == "nested":
        return FieldPlanes(words.transpose(0, 1), nested_fields(bits), inputs, scales, zeros, group)
    return FieldPlanes(words, FIELDS[bits], inputs, scales, zeros, group)


def weight_of(case: Case, device: torch.device) -> FieldPlanes | GroupMixed | ExpertMixed:
    if case.kind == "experts":
        return stack_experts([planes(bits, case.outputs, case.inputs, case.group, device) for bits in case.bits])
    if case.kind == "plain":
        return planes(case.bits[0], case.outputs, case.inputs, case.group, device, case.order)
    widths = [case.bits[index % len(case.bits)] for index in range(case.inputs // case.group)]
    classes = []
    for bits in sorted(set(widths)):
        numbers = [index for index, each in enumerate(widths) if each == bits]
        part = planes(bits, case.outputs, len(numbers) * case.group, case.group, device)
        classes.append((part, torch.tensor(numbers, dtype=torch.int32, device=device)))
    return GroupMixed(tuple(classes))


def activations(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """x (rows, in), and the experts (rows, CHOSEN) that are chosen, all different for a token."""
    x = torch.randn(case.rows, case.inputs, device=device).to(case.torch_dtype)
    experts = max(len(case.bits), CHOSEN)
    return x, torch.rand(case.rows, experts, device=device).topk(CHOSEN, 1).indices


def choice_of(case: Case, device: torch.device) -> Choice:
    """What the selector takes; for groups, by the widest of them."""
    groups, single = -(-case.inputs // case.group), case.dtype == "float32"
    processors = running.processors(device)
    return select(max(case.bits), case.rows, case.inputs, case.outputs, case.group, groups, single, processors)


def changed(case: Case, choice: Choice, device: torch.device) -> Choice | None:
    """The choice with `case.change`; None where there is nothing to change, or it cannot be."""
    name, _, value = case.change.partition("=")
    if name == "atomics":
        return choice if choice.split > 1 else None
    if name == "gemm":
        return choice_of(replace(case, rows=16), device) if case.rows <= MOST_GEMV_ROWS else None
    if name == "dequantize":
        return replace(choice, kernel=name) if choice.kernel != name and case.rows > 1 else None
    if choice.kernel == "dequantize":
        return None
    if name == "split":
        parts = min(max(int(choice.split * float(value)), 1), -(-case.inputs // choice.tile.inputs))
        other = replace(choice, split=parts)
    else:
        tile: Any = replace(choice.tile, **{name: int(value)})
        other = replace(choice, tile=tile, split=min(choice.split, -(-case.inputs // tile.inputs)))
    return other if other != choice else None


def called(case: Case, x: Tensor, chosen: Tensor, weight: Any, choice: Choice | None = None) -> Tensor:
    """The product, (rows, out); for experts (rows * CHOSEN, out). With `choice` of a plain one that instead of the selector's."""
    if isinstance(weight, ExpertMixed):
        return expert_mixed(x, weight, chosen, x.dtype)
    if isinstance(weight, GroupMixed):
        return group_mixed(x, weight, x.dtype, True)
    if choice is None:
        return product(x, weight, x.dtype, True)
    if choice.kernel == "dequantize":
        return x @ dequantized(weight, x.dtype)
    kernel: Callable[..., Tensor] = gemv if choice.kernel == "gemv" else gemm
    return kernel(x, weight, choice, x.dtype, case.change != "atomics")


def exact(x: Tensor, chosen: Tensor, weight: Any) -> Tensor:
    """The same in float64, from float64 numbers where they are not float32's own."""
    wide = x.double()
    if isinstance(weight, ExpertMixed):
        y = torch.empty(*chosen.shape, weight.outputs, dtype=torch.float64, device=x.device)
        for index in range(weight.experts):
            token, place = torch.where(chosen == index)
            y[token, place] = wide[token] @ _numbers(weight.expert(index))
        return y.flatten(0, 1)
    if isinstance(weight, GroupMixed):
        return wide @ group_mixed_numbers(weight).double()
    return wide @ _numbers(weight)


def _numbers(weight: FieldPlanes) -> Tensor:
    assert weight.zeros is not None
    group = torch.arange(weight.inputs, device=weight.words.device) // weight.group_size
    if weight.words.device.type == "cpu":
        return transposed_numbers(weight).double()
    return (codes_of(weight).double() - weight.zeros.double()[group]) * weight.scales.double()[group]


def correctness_cases(tiny: bool) -> list[Case]:
    """Every kernel and width, in odd sizes and even ones, in both orders."""
    found = []
    for bits in (3, 8) if tiny else range(1, 9):
        for outputs, inputs, group in ((77, 211, 64),) if tiny else ((77, 211, 64), (512, 1024, 128), (130, 320, 32)):
            for rows in (2, 17) if tiny else (1, 2, 3, 4, 5, 16, 33, 64, 400):
                for dtype in ("float16",) if tiny else ("float16", "bfloat16", "float32"):
                    order = "nested" if (rows + bits) % 5 == 0 else "block"
                    found.append(Case("correct", "plain", (bits,), outputs, inputs, rows, dtype, group, order))
    for kind in ("groups", "experts"):
        for widths in ((2, 3, 4, 3),) if tiny else ((2, 3, 4, 3), (8, 1, 5, 5), (7, 6, 7, 6), (4, 4, 4, 4)):
            for rows in (3,) if tiny else (1, 4, 17, 64, 400):
                for dtype in ("float16",) if tiny else ("float16", "float32"):
                    found.append(Case("correct", kind, widths, 77 if tiny else 200, 4 * 64, rows, dtype, 64))
    return found


def time_cases(quick: bool, tiny: bool) -> list[Case]:
    shapes = ((40, 128), (72, 256)) if tiny else SHAPES[:2] if quick else SHAPES
    widths, rows = ((4, 3), (1, 16)) if tiny else (BITS[:6], ROWS[:2]) if quick else (BITS, ROWS)
    return [Case("time", "plain", (bits,), *shape, count) for count in rows for shape in shapes for bits in widths]


def mixed_cases(quick: bool, tiny: bool) -> list[Case]:
    """Each of one mean width with the same kernel that has a single width."""
    shape = (40, 512) if tiny else SHAPES[0]
    rows = (1, 16) if tiny or quick else (1, 4, 16, 64)
    found = [Case("mixed", "groups", GROUP_WIDTHS, *shape, count, change="one width") for count in rows]
    found += [Case("mixed", "experts", EXPERT_WIDTHS, *shape, count, change="one width") for count in rows]
    return found


def changed_cases(quick: bool, tiny: bool, device: torch.device) -> list[Case]:
    shapes = ((40, 256),) if tiny else SHAPES[:1] if quick else SHAPES[:2]
    widths, rows = ((4,), (1,)) if tiny else ((4, 3), (1, 16)) if quick else ((4, 3, 2, 8), (1, 4, 16, 64))
    found = []
    for change in CHANGES[:2] if tiny else CHANGES:
        for count in rows:
            for bits in widths:
                for shape in shapes:
                    case = Case("changes", "plain", (bits,), *shape, count, change=change)
                    if changed(case, choice_of(case, device), device) is not None:
                        found.append(case)
    return found
