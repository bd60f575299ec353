"""The compiled products against float64, in every instruction set that the processor runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bitplan.kernels import plain
from bitplan.kernels import product as products
from bitplan.kernels.cpu import compiled
from bitplan.kernels.layout import FieldPlanes, pack
from bitplan.kernels.mixed import pack_groups, stack_experts
from bitplan.kernels.product import matmul, moe_matmul
from bitplan.kernels.reference import transposed_numbers

CPU = torch.device("cpu")
SETS = ["avx512", "avx2", "neon", "plain"]
SHAPES = [(1, 1), (5, 33), (77, 211), (64, 128), (130, 320), (256, 256)]
ROWS = (1, 2, 3, 4, 5, 15, 16, 17, 33)
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 1e-6}

pytestmark = pytest.mark.skipif(compiled.missing(CPU) is not None, reason="the compiled module was not built: no C compiler")


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name not in compiled.instruction_sets():
        pytest.skip(f"this processor does not run {name}")
    return name


def matrix(
    bits: int,
    outputs: int,
    inputs: int,
    group: int | None,
    *,
    seed: int = 0,
    order: str = "block",
    dtype: torch.dtype = torch.float16,
) -> FieldPlanes:
    """Random codes, scales of either sign, zero points that are not whole, or none for every third seed."""
    g = torch.Generator().manual_seed(seed)
    groups = 1 if group is None else -(-inputs // group)
    scales = (torch.rand(groups, outputs, generator=g) + 0.5) * torch.where(torch.rand(groups, outputs, generator=g) < 0.2, -1, 1)
    zeros = torch.rand(groups, outputs, generator=g) * 2**bits
    codes = torch.randint(2**bits, (inputs, outputs), generator=g)
    given = None if seed % 3 == 0 else zeros.to(dtype)
    return pack(codes, bits, scales.to(dtype), given, group_size=group, order=order)  # type: ignore[arg-type]


def apart(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def cases() -> Iterator[tuple[int, int, int, int, int | None, str, torch.dtype]]:
    """A tenth of all combinations, drawn once and for all."""
    drawn = random.Random(0)
    each = itertools.product(range(1, 9), ROWS, SHAPES, (32, 64, 128, None), ("block", "nested"), (torch.float16, torch.float32))
    for bits, rows, (outputs, inputs), group, order, dtype in each:
        if drawn.random() < 0.1:
            yield bits, rows, outputs, inputs, group, order, dtype


def test_every_width_shape_and_group_agrees_with_float64(instructions: str) -> None:
    for seed, (bits, rows, outputs, inputs, group, order, dtype) in enumerate(cases()):
        planes = matrix(bits, outputs, inputs, group, seed=seed, order=order, dtype=dtype)
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))
        exact = x.double() @ transposed_numbers(planes).double()
        y = compiled.product(x, planes, torch.float32, True, instructions=instructions)
        assert apart(y, exact) < 1e-6, (bits, rows, outputs, inputs, group, order, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bits", range(1, 9))
def test_activations_of_every_dtype(bits: int, dtype: torch.dtype) -> None:
    planes = matrix(bits, 77, 211, 64)
    for rows in (1, 7):
        x = torch.randn(rows, 211, generator=torch.Generator().manual_seed(bits)).to(dtype)
        y = matmul(x, planes, backend="c")
        assert y.dtype == dtype
        assert apart(y, x.double() @ transposed_numbers(planes).double()) < TOLERANCE[dtype]
        wide = matmul(x, planes, out_dtype=torch.float32, backend="c")
        assert apart(wide, x.double() @ transposed_numbers(planes).double()) < 1e-6


@pytest.mark.parametrize("order", ["block", "nested"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_are_those_of_the_reference_to_the_last_bit(bits: int, order: str, instructions: str) -> None:
    for (outputs, inputs), group, dtype in itertools.product(SHAPES, (32, None), (torch.float16, torch.bfloat16, torch.float32)):
        planes = matrix(bits, outputs, inputs, group, seed=inputs + bits, order=order, dtype=dtype)
        exact = transposed_numbers(planes)
        assert torch.equal(compiled.transposed_numbers(planes, instructions=instructions), exact)
        for some in (slice(0, 1), slice(0, 4), slice(None)):  # single rows, a few, many: three ways through the code
            picked = torch.eye(inputs)[some]
            assert torch.equal(compiled.product(picked, planes, torch.float32, True, instructions=instructions), exact[some])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_changes_are_those_of_the_reference_to_the_last_bit(bits: int, dtype: torch.dtype, instructions: str) -> None:
    for (outputs, inputs), group in itertools.product(SHAPES, (32, None)):
        planes = matrix(bits, outputs, inputs, group, seed=inputs + bits)
        weight = torch.randn(inputs, outputs + 3, generator=torch.Generator().manual_seed(bits))[:, :outputs]
        exact = plain.transposed_change(planes, weight, dtype)
        assert exact.dtype == dtype
        for own in (weight, weight.T.contiguous().T):  # a run of a wider matrix, and outputs apart
            assert torch.equal(compiled.transposed_change(planes, own, dtype, instructions=instructions), exact)


def test_halves_are_rounded_to_even_and_what_is_no_number_stays_none(instructions: str) -> None:
    planes = matrix(4, 77, 64, None)
    weight = transposed_numbers(planes) - torch.arange(64 * 77).view(64, 77) * 2.0**-16 - 1  # every second one lies midway
    weight[3, 5], weight[4, 6], weight[5, 7] = float("nan"), float("inf"), -3.4e38
    made = compiled.transposed_change(planes, weight, torch.bfloat16, instructions=instructions)
    assert torch.equal(made.isnan(), weight.isnan())
    exact = plain.transposed_change(planes, weight, torch.bfloat16)
    assert torch.equal(made.nan_to_num(0.0), exact.nan_to_num(0.0))


@pytest.mark.parametrize("rows", [1, 4, 6, 400])
def test_nothing_beside_the_output_is_written_and_all_of_it_is(
    rows: int, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs are made within a larger buffer full of a canary, and outputs that are not asked for hold NaN."""
    planes, x = matrix(3, 77, 211, 64), torch.randn(rows, 211)
    canary = torch.full((rows * 77 + 128,), 123.5)
    y = canary[64:-64].view(rows, 77)
    y.zero_()
    compiled._add(y, x, planes, False, instructions)
    assert torch.all(canary[:64] == 123.5)
    assert torch.all(canary[-64:] == 123.5)
    assert torch.isfinite(y).all()
    assert apart(y, x.double() @ transposed_numbers(planes).double()) < 1e-6


def test_words_behind_the_last_are_never_read_into_a_result(instructions: str) -> None:
    planes = matrix(5, 77, 211, None)
    guarded = torch.full((planes.words.numel() + 512,), 0x7F7F7F7F, dtype=torch.int32)
    guarded[256:-256] = planes.words.reshape(-1)
    inside = guarded[256:-256].view(planes.words.shape)
    same = FieldPlanes(inside, planes.fields, planes.inputs, planes.scales, planes.zeros, planes.group_size)
    x = torch.randn(3, 211)
    expected = compiled.product(x, planes, torch.float32, True, instructions=instructions)
    assert torch.equal(compiled.product(x, same, torch.float32, True, instructions=instructions), expected)
    assert torch.all(guarded[:256] == 0x7F7F7F7F)
    assert torch.all(guarded[-256:] == 0x7F7F7F7F)


def test_a_run_of_outputs_is_read_where_it_lies(instructions: str) -> None:
    """Views into larger words and scales, with zero points laid out in another way."""
    whole = matrix(5, 160, 211, 64, seed=1)
    assert whole.zeros is not None
    some = slice(64, 141)
    part = FieldPlanes(whole.words[:, :, some], whole.fields, 211, whole.scales[:, some], whole.zeros[:, some].contiguous(), 64)
    assert not part.words.is_contiguous()
    for rows in (1, 3, 9, 400):
        x = torch.randn(rows, 211, generator=torch.Generator().manual_seed(rows))
        expected = compiled.product(x, whole, torch.float32, True, instructions=instructions)[:, some]
        made = compiled.product(x, part, torch.float32, True, instructions=instructions)
        assert apart(made, expected.double()) < 1e-6
    assert torch.equal(compiled.transposed_numbers(part, instructions=instructions), transposed_numbers(whole)[:, some])


def test_codes_behind_the_last_input_count_for_nothing(instructions: str) -> None:
    """What pads the last block to 32 inputs may hold any code."""
    planes = matrix(4, 9, 40, None)
    words = planes.words.clone()
    words[1, 1:] = -1  # inputs 40 .. 63
    full = FieldPlanes(words, planes.fields, 40, planes.scales, planes.zeros, planes.group_size)
    for rows in (1, 9):
        x = torch.randn(rows, 40)
        expected = compiled.product(x, planes, torch.float32, True, instructions=instructions)
        assert torch.equal(compiled.product(x, full, torch.float32, True, instructions=instructions), expected)


@pytest.mark.parametrize("zero", [0.0, 7.0, 3.25])
@pytest.mark.parametrize("scale", [1e-8, 6e4, -1.0])
def test_extreme_scales_and_zero_points(scale: float, zero: float, instructions: str) -> None:
    codes = torch.randint(8, (96, 40), generator=torch.Generator().manual_seed(0))
    numbers = torch.full((3, 40), scale, dtype=torch.float16 if abs(scale) > 1e-6 else torch.float32)
    planes = pack(codes, 3, numbers, torch.full_like(numbers, zero), group_size=32)
    x = torch.randn(2, 96, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ ((codes.double() - zero) * numbers.double()[0])
    assert apart(compiled.product(x, planes, torch.float32, True, instructions=instructions), exact) < 1e-6


def test_the_result_is_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    planes, x = matrix(3, 700, 320, 64), torch.randn(9, 320)
    monkeypatch.setattr(compiled, "WORTH_A_THREAD", 1)
    results = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append([compiled.product(x[:rows], planes, torch.float32, True) for rows in (1, 9)])
        results[-1].append(compiled.transposed_numbers(planes))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bits", range(1, 9))
def test_int8_activations_are_exact_in_integers(bits: int, instructions: str) -> None:
    """Whole x with a largest magnitude of 127 in every run of 128 is its own rounding, so only float32's rounding is left."""
    g = torch.Generator().manual_seed(bits)
    planes = matrix(bits, 77, 320, 64, dtype=torch.float32)
    for rows in (1, 2, 4, 9):
        x = torch.randint(-127, 128, (rows, 320), generator=g).float()
        x[:, ::32] = 127
        y = compiled.product_int8(x, planes, torch.float32, instructions=instructions)
        assert apart(y, x.double() @ transposed_numbers(planes).double()) < 1e-6


def test_int8_activations_that_are_no_numbers_give_none(instructions: str) -> None:
    planes = matrix(4, 9, 128, 64, seed=1)
    for strange in (float("nan"), float("inf"), float("-inf")):
        x = torch.ones(2, 128)
        x[0, 70] = strange
        y = compiled.product_int8(x, planes, torch.float32, instructions=instructions)
        assert not torch.isfinite(y[0]).any()
        assert torch.isfinite(y[1]).all()


def test_int8_activations_of_any_size_are_about_one_per_cent_off(instructions: str) -> None:
    planes = matrix(4, 256, 512, 64)
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1.0, 1e6, 0.0])[:, None]
    exact = x.double() @ transposed_numbers(planes).double()
    y = compiled.product_int8(x, planes, torch.float32, instructions=instructions)
    assert torch.equal(y, matmul(x, planes, int8_activations=True)) or instructions != compiled.instruction_sets()[0]
    for row in range(3):
        assert 1e-4 < apart(y[row], exact[row]) < 1.5e-2
    assert torch.all(y[3] == 0)


@pytest.mark.parametrize("bits", [[4, 4, 4], [3, 2, 4, 3, 4, 4], [8, 1, 5]])
def test_mixed_groups(bits: list[int]) -> None:
    g = torch.Generator().manual_seed(len(bits))
    codes = torch.cat([torch.randint(2**width, (64, 33), generator=g) for width in bits])
    scales, zeros = torch.rand(len(bits), 33, generator=g), torch.rand(len(bits), 33, generator=g) * 2
    mixed = pack_groups(codes, bits, scales, zeros, 64)
    numbers = (codes - zeros.repeat_interleave(64, 0)) * scales.repeat_interleave(64, 0)
    for rows in (1, 7):
        x = torch.randn(rows, 64 * len(bits), generator=g)
        assert apart(matmul(x, mixed, backend="c"), x.double() @ numbers.double()) < 1e-6


def test_mixed_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight widths in one call, an expert that nobody chose, one that everybody did, and threads."""
    g = torch.Generator().manual_seed(0)
    experts = stack_experts([matrix(width, 77, 96, 32, seed=width) for width in (2, 3, 4, 8, 1, 6, 5, 7)])
    calls = []

    def counted() -> ModuleType | None:
        calls.append(1)
        return compiled._module()

    monkeypatch.setattr(compiled, "_planes", counted)
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for tokens, slots in ((1, 1), (1, 8), (20, 3), (200, 2)):
            x = torch.randn(tokens, 96, generator=g)
            chosen = torch.stack([torch.randperm(8, generator=g)[:slots] for _ in range(tokens)])
            if slots == 3:
                chosen[chosen == 3] = 4
                chosen[:, 0] = 6
            weights = torch.rand(tokens, slots, generator=g)
            calls.clear()
            y = moe_matmul(x, experts, chosen, weights, backend="c")
            assert len(calls) <= 2  # one for each thread, however many experts
            for t, j in itertools.product(range(tokens), range(slots)):
                exact = weights[t, j].double() * (x[t].double() @ transposed_numbers(experts.expert(int(chosen[t, j]))).double())
                assert apart(y[t * slots + j], exact) < 1e-6


def test_why_it_cannot_compute_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    planes, x = matrix(4, 9, 40, None), torch.randn(2, 40)
    monkeypatch.setattr(compiled, "_module", lambda: None)
    with pytest.raises(ValueError, match=r"cannot compute on cpu: its module was not built .* install a C compiler"):
        matmul(x, planes, backend="c")
    products.automatic.cache_clear()
    try:
        assert products.automatic("cpu") == "torch"  # the slower path, and the name says so
        assert apart(matmul(x, planes), x.double() @ transposed_numbers(planes).double()) < 1e-6
        with pytest.raises(ValueError, match=r"int8 activations need the compiled module .* here is 'torch'"):
            matmul(x, planes, int8_activations=True)
    finally:
        products.automatic.cache_clear()
    with pytest.raises(ValueError, match="does not run 'sse9'; it runs"):
        compiled.product_int8(x, planes, torch.float32, instructions="sse9")
    assert compiled.missing(torch.device("meta")) == "its kernels run on CPUs"
