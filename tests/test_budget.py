from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fakes
from bitplan.allocator import Budget, UsageError
from bitplan.allocator.budget import LARGEST, UNITS, readable

INVENTORY = fakes.inventory()
HALF = "write bytes (512MiB"  # how every refusal goes on

digits = st.integers(1, 10**6).map(str)
numbers = st.one_of(digits, st.tuples(digits, st.text("0123456789", min_size=1, max_size=6)).map(".".join))


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("536870912", "bytes", 536870912),
        ("512MiB", "bytes", 512 * 2**20),
        ("1.5GB", "bytes", 1_500_000_000),
        ("1.5 gib", "bytes", 3 * 2**29),
        (" 64kb ", "bytes", 64_000),
        ("2TiB", "bytes", 2 * 2**40),
        ("7b", "bytes", 7),
        ("536_870_912", "bytes", 536870912),
        (".5KiB", "bytes", 512),
        ("3.25bpw", "bpw", Decimal("3.25")),
        ("3 BPW", "bpw", 3),
        ("40%", "percent", 40),
        ("12.5 %", "percent", Decimal("12.5")),
        ("120%", "percent", 120),
    ],
)
def test_the_forms(text: str, kind: str, amount: int | Decimal) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount, budget.text) == (kind, amount, text)


@given(numbers, st.sampled_from(sorted(UNITS)), st.booleans(), st.sampled_from(["", " ", "\t"]))
def test_bytes_are_exact_and_rounded_down(number: str, unit: str, upper: bool, space: str) -> None:
    text = f"{number}{space}{unit.upper() if upper else unit}"
    exact = Fraction(number) * UNITS[unit]
    if 0 < exact < LARGEST:
        assert Budget.parse(text).limit_bytes(INVENTORY) == floor(exact)
    else:
        with pytest.raises(UsageError):
            Budget.parse(text)


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.sampled_from(["", "kb", "MiB", "bpw", "%"]))
def test_a_larger_number_never_allows_fewer_bytes(one: int, other: int, unit: str) -> None:
    smaller, larger = sorted((one, other))
    of_smaller, of_larger = (Budget.parse(f"{n / 8}{unit}").limit_bytes(INVENTORY) for n in (smaller, larger))
    assert of_smaller <= of_larger
    if (larger - smaller) / 8 >= 1:  # one bit, one percent, one byte and more are never lost to rounding
        assert of_smaller < of_larger


def test_percent_is_of_the_model_in_its_own_dtype() -> None:
    assert Budget.parse("100%").limit_bytes(INVENTORY) == INVENTORY.native_bytes
    assert Budget.parse("12.5%").limit_bytes(INVENTORY) == INVENTORY.native_bytes // 8
    assert Budget.parse("250%").limit_bytes(INVENTORY) == INVENTORY.native_bytes * 5 // 2


def test_bits_a_weight_count_the_units_that_may_be_touched() -> None:
    """Sixteen bits a weight are a bf16 model; what no plan touches, and what is pinned, comes on top."""
    assert Budget.parse("16bpw").limit_bytes(INVENTORY) == INVENTORY.native_bytes
    assert Budget.parse("3.25bpw").limit_bytes(INVENTORY) == INVENTORY.fixed_bytes + INVENTORY.unit_parameters * 13 // 32
    pinned = INVENTORY.units[0]
    limit = Budget.parse("4bpw").limit_bytes(INVENTORY, pinned.parameters, 1000)
    assert limit == INVENTORY.fixed_bytes + 1000 + (INVENTORY.unit_parameters - pinned.parameters) // 2


NONSENSE = """-3bpw|12 parsecs|0|0%|0.0MiB|| |%|bpw|MiB|1,5GB|1e9|1 2GB|nan|inf|3.25.1|0x10|4bit|40 percent|1__0|+5GB|٣ parsecs"""


@pytest.mark.parametrize("text", NONSENSE.split("|"))
def test_nonsense_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match="40%") as caught:
        Budget.parse(text)
    assert HALF in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["24G", "24g", "1.5 M", "800K", "2t"])
def test_a_bare_letter_is_ambiguous(text: str) -> None:
    number, letter = text[:-1].strip(), text[-1].upper()
    with pytest.raises(UsageError, match=f"ambiguous; write {number}{letter}iB or {number}{letter}B"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["fits 24GiB", "fits 24GiB --context 8192 --batch 4", " FITS 8GiB"])
def test_budgets_for_a_device_say_that_they_are_not_there_yet(text: str) -> None:
    with pytest.raises(UsageError, match="not available in this version") as caught:
        Budget.parse(text)
    assert HALF in str(caught.value)


@pytest.mark.parametrize("text", ["1" + "0" * 5000, "9" * 30 + "TB", "1" + "0" * 5000 + "%", "99999999999bpw"])
def test_numbers_beyond_any_device_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="beyond any device") as caught:
        Budget.parse(text)
    assert len(str(caught.value)) < 300


@given(st.one_of(st.text(max_size=20), st.text("0123456789.%-_ MGiBbpw", max_size=12)))
def test_any_text_is_a_budget_or_refused(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except UsageError:
        return
    assert budget.amount > 0
    assert budget.limit_bytes(INVENTORY) >= 0


def test_readable() -> None:
    assert readable(62_914_560) == "60 MiB (62,914,560 bytes)"
    assert readable(1023) == "1,023 bytes"
    assert readable(1536) == "1.5 KiB (1,536 bytes)"
    assert readable(5 * 2**30) == "5 GiB (5,368,709,120 bytes)"
