from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fakes
from bitplan.allocator import Infeasible, PlanRequest, ProfileRequest, UsageError
from bitplan.allocator.build import Built, build_problem
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.units import Fixed, Inventory, Matrix, Unit

PALETTE = ("int4-g32-asym", "int8-row")
FORMATS = (*PALETTE, "bf16")
LAYER = "model.layers.1"


def unit(name: str, *shapes: tuple[int, int], native: str = "bf16") -> Unit:
    return Unit(name, "linear", "other", tuple(Matrix(f"{name}.{i}", shape) for i, shape in enumerate(shapes)), native)


# Bytes by hand. int4-g32-asym: 4 words a block of 32 inputs and output, 2 bytes a scale, zero points packed along outputs.
#            int4-g32-asym                        int8-row                  bf16
# (8, 40)    256 codes + 32 scales + 32 zeros     512 codes + 16 scales      640
# (64, 32)   1024      + 128       + 32           2048      + 128           4096     each of two matrices
# (1, 4)     16        + 2         + 16           32        + 2                8
PLAIN, PAIR, TINY = unit("plain", (8, 40)), unit("pair", (64, 32), (64, 32)), unit("tiny", (1, 4))
BYTES = {"plain": (320, 528, 640), "pair": (2 * 1184, 2 * 2176, 2 * 4096), "tiny": (34, 34, 8)}
FIXED = (Fixed("norm", (10,), "fp32", "vector"), Fixed("step", (), "int64", "vector"))  # 40 + 8 bytes


def inventory(*units: Unit) -> Inventory:
    return Inventory("hand", "f" * 64, "Made", "causal-lm", "tokens", units, FIXED)


def report(found: Inventory, loss: list[list[float]], formats: tuple[str, ...] = FORMATS) -> SensitivityReport:
    names = tuple(unit.name for unit in found.units)
    table = np.array(loss)
    return SensitivityReport("id", "kl_fisher", "nats", {}, names, formats, table, None, 1, found.fingerprint, "", "", 0, 0.0, {})


def request(budget: str = "1MiB", target: str = "native", pins: tuple[tuple[str, str], ...] = ()) -> PlanRequest:
    return PlanRequest(ProfileRequest("hand", formats=PALETTE), budget, target, pins=pins)


def item(built: Built, name: str) -> int:
    return next(i for i, units in enumerate(built.items) if name in units)


def options(built: Built, name: str) -> set[str]:
    """The formats that the item of unit `name` may take."""
    return {fmt for fmt, ok in zip(built.formats, built.problem.allowed[item(built, name)], strict=True) if ok}


def test_bytes_by_hand() -> None:
    built = build_problem(inventory(PLAIN, PAIR, TINY), None, request())
    assert built.formats == FORMATS
    assert built.items == (("plain",), ("pair",), ("tiny",))
    assert built.problem.cost[0].tolist() == [list(BYTES[name]) for (name,) in built.items]
    assert built.minimum_bytes == 48 + 320 + 2368 + 8


def test_the_largest_is_the_models_own_size_though_a_tiny_matrix_grows_by_packing() -> None:
    found = inventory(PLAIN, PAIR, TINY)
    built = build_problem(found, None, request())
    assert built.maximum_bytes == found.native_bytes == 48 + 640 + 8192 + 8
    assert built.problem.limit.tolist() == [640 + 8192 + 8]


def test_losses_come_from_the_report_by_name() -> None:
    found = inventory(PLAIN, PAIR)
    table = [[4.0, 3.0, 0.0], [2.0, 1.0, 0.0]]
    wide = report(found, [[9.0, *row] for row in table], ("int2-g64", *FORMATS))
    for measured in (report(found, table), wide):
        assert build_problem(found, measured, request()).problem.loss.tolist() == table


def test_the_limit_is_what_the_left_alone_tensors_leave() -> None:
    built = build_problem(inventory(PLAIN, PAIR), None, request("5000"))
    assert built.limit_bytes == 5000
    assert built.problem.limit.tolist() == [5000 - 48]


def test_pairs_that_were_not_measured_are_not_allowed() -> None:
    found = inventory(PLAIN, PAIR)
    holes = report(found, [[1.0, np.nan, 0.0], [1.0, 1.0, 0.0]])
    assert options(build_problem(found, holes, request()), "plain") == {"int4-g32-asym", "bf16"}
    narrow = report(found, [[1.0, 0.0], [1.0, 0.0]], ("int4-g32-asym", "bf16"))
    assert options(build_problem(found, narrow, request()), "pair") == {"int4-g32-asym", "bf16"}


class TestPins:
    FOUND = inventory(PLAIN, PAIR, replace(TINY, name="plainer"))

    def test_a_pin_matches_whole_names_and_leaves_one_format(self) -> None:
        built = build_problem(self.FOUND, None, request(pins=(("plain", "int8-row"),)))
        assert options(built, "plain") == {"int8-row"}
        assert options(built, "plainer") == options(built, "pair") == set(FORMATS)
        assert built.pins == {"plain": "int8-row"}

    def test_the_last_of_two_pins_holds(self) -> None:
        built = build_problem(self.FOUND, None, request(pins=((".*", "int8-row"), ("pl.*", "native"))))
        assert built.pins == {"plain": "bf16", "pair": "int8-row", "plainer": "bf16"}

    def test_native_is_each_units_own_dtype(self) -> None:
        found = inventory(PLAIN, replace(PAIR, native="fp32"))
        assert build_problem(found, None, request(pins=((".*", "native"),))).pins == {"plain": "bf16", "pair": "fp32"}

    def test_a_pin_that_matches_nothing_shows_how_names_look(self) -> None:
        with pytest.raises(UsageError, match="pin 'lain' matches no unit of hand; names look like 'plain'"):
            build_problem(self.FOUND, None, request(pins=(("lain", "int8-row"),)))

    def test_a_format_that_the_target_does_not_admit(self) -> None:
        with pytest.raises(UsageError, match=r"no format is left for plain=fp32 on target native: .*; change the pins"):
            build_problem(self.FOUND, None, request(pins=(("plain", "fp32"),)))
        with pytest.raises(UsageError, match=r"no format is left for model.embed_tokens=int8-row on target vllm"):
            build_problem(fakes.inventory(), None, request(target="vllm", pins=((".*embed_tokens", "int8-row"),)))

    def test_tied_units_cannot_be_pinned_apart(self) -> None:
        apart = ((f"{LAYER}.self_attn.q_proj", "int8-row"), (f"{LAYER}.self_attn.k_proj", "native"))
        with pytest.raises(UsageError, match=r"k_proj=bf16, .*q_proj=int8-row on target vllm: tied units must agree"):
            build_problem(fakes.inventory(), None, request(target="vllm", pins=apart))
        build_problem(fakes.inventory(), None, request(pins=apart))

    def test_one_pin_holds_for_all_that_are_tied(self) -> None:
        built = build_problem(fakes.inventory(), None, request(target="vllm", pins=((f"{LAYER}.self_attn.q_proj", "int8-row"),)))
        assert options(built, f"{LAYER}.self_attn.v_proj") == {"int8-row"}

    def test_the_smallest_and_largest_are_those_with_the_pins(self) -> None:
        built = build_problem(self.FOUND, None, request(pins=(("pair", "int8-row"), ("plain", "bf16"))))
        assert built.minimum_bytes == 48 + 640 + 4352 + 8
        assert built.maximum_bytes == 48 + 640 + 4352 + 8


class TestTies:
    def test_native_ties_nothing(self) -> None:
        for model in ("tiny", "experts"):
            built = build_problem(fakes.inventory(model), None, request())
            assert all(len(units) == 1 for units in built.items)

    def test_vllm_ties_what_it_fuses(self) -> None:
        built = build_problem(fakes.inventory(), None, request(target="vllm"))
        tied = {units for units in built.items if len(units) > 1}
        attention, mlp = (tuple(f"{LAYER}.{part}_proj" for part in parts) for parts in (QKV, ("mlp.gate", "mlp.up")))
        assert attention in tied
        assert mlp in tied
        assert len(tied) == 2 * fakes.LAYERS

    def test_vllm_ties_the_experts_of_a_layer_and_of_no_other(self) -> None:
        built = build_problem(fakes.inventory("experts"), None, request(target="vllm"))
        experts = [units for units in built.items if "experts" in units[0]]
        assert experts == [
            tuple(f"model.layers.{layer}.mlp.experts.{e}" for e in range(fakes.EXPERTS)) for layer in range(fakes.LAYERS)
        ]

    def test_tied_units_are_one_item_with_their_losses_and_bytes_added(self) -> None:
        found = fakes.inventory()
        measured = fakes.report(request().measured)
        alone = build_problem(found, measured, request())
        tied = build_problem(found, measured, request(target="vllm"))
        for i, units in enumerate(tied.items):
            for j, ok in enumerate(tied.problem.allowed[i]):
                if ok:
                    rows = [item(alone, name) for name in units]
                    assert tied.problem.cost[0, i, j] == alone.problem.cost[0, rows, j].sum()
                    assert tied.problem.loss[i, j] == pytest.approx(alone.problem.loss[rows, j].sum(), rel=1e-12)

    def test_the_way_back_gives_every_unit_once_and_tied_units_the_same(self) -> None:
        found = fakes.inventory("experts")
        built = build_problem(found, None, request(target="vllm"))
        choice = np.arange(len(built.items)) % len(built.formats)
        assignment = built.assignment(choice)
        assert sorted(assignment) == sorted(unit.name for unit in found.units)
        for units, j in zip(built.items, choice, strict=True):
            assert {assignment[name] for name in units} == {built.formats[j]}


QKV = ("self_attn.q", "self_attn.k", "self_attn.v")


class TestBudgets:
    FOUND = inventory(PLAIN, PAIR, TINY)
    SMALLEST = 48 + 320 + 2368 + 8

    def test_the_smallest_is_met_and_one_byte_less_is_not(self) -> None:
        smallest = self.SMALLEST
        assert build_problem(self.FOUND, None, request(str(smallest))).limit_bytes == smallest
        with pytest.raises(Infeasible) as caught:
            build_problem(self.FOUND, None, request(str(smallest - 1)))
        assert caught.value.minimum_bytes == smallest
        assert caught.value.maximum_bytes == self.FOUND.native_bytes
        assert f"needs at least {smallest / 1024:.4g} KiB ({smallest:,} bytes)" in str(caught.value)
        assert f"({self.FOUND.native_bytes:,} bytes)" in str(caught.value)

    def test_bits_a_weight_leave_out_what_the_target_does_not_touch(self) -> None:
        """An embedding that vLLM keeps as it is neither costs nor feeds a budget in bits a weight."""
        found = fakes.inventory()
        built = build_problem(found, None, request("6bpw", "vllm"))
        embedding = found.units[0]
        assert options(built, embedding.name) == {"bf16"}
        free = found.unit_parameters - embedding.parameters
        assert built.limit_bytes == found.fixed_bytes + 2 * embedding.parameters + free * 6 // 8

    def test_bits_a_weight_leave_out_what_is_pinned(self) -> None:
        built = build_problem(self.FOUND, None, request("6bpw", pins=(("plain", "int8-row"),)))
        assert built.limit_bytes == 48 + 528 + (PAIR.parameters + TINY.parameters) * 6 // 8

    @given(st.integers(1, 12_000))
    def test_no_choice_within_the_limit_breaks_the_budget(self, budget: int) -> None:
        if budget < self.SMALLEST:
            with pytest.raises(Infeasible):
                build_problem(self.FOUND, None, request(str(budget)))
        else:
            built = build_problem(self.FOUND, None, request(str(budget)))
            assert int(built.problem.limit[0]) + self.FOUND.fixed_bytes <= budget
