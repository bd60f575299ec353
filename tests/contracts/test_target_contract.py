"""What every target promises: a plan for any model, in formats that can be stored, tied units agreeing, within its bytes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

import fakes
import stranger
from bitplan.allocator import TARGETS, PlanRequest, ProfileRequest, check_budget, plan_from_profile
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.units import Kind, Matrix, Unit

KINDS: tuple[Kind, ...] = ("linear", "conv", "embedding", "expert")
SHAPES = ((64, 64), (3, 27), (300, 48), (2, 2), (1, 4097))
UNITS = [
    Unit(f"layers.0.x.{kind}", kind, role, (Matrix("m", shape),), native)
    for kind in KINDS
    for role in ("q", "gate", "other")
    for shape in SHAPES
    for native in ("fp32", "bf16", "fp16")
]

pytestmark = pytest.mark.parametrize("target", TARGETS)


def test_the_name_and_a_line_that_says_what_it_is(target: str) -> None:
    assert TARGETS[target].name == target
    assert len(TARGETS[target].summary) > 20
    assert "\n" not in TARGETS[target].summary


def test_a_unit_may_always_stay_as_it_is(target: str) -> None:
    assert all(TARGETS[target].admits(unit, FORMATS[unit.native]) for unit in UNITS)


def test_only_what_can_be_rendered_is_admitted(target: str) -> None:
    from bitplan.sensitivity.units import admits

    wrong = [
        (unit, name)
        for unit in UNITS
        for name, fmt in FORMATS.items()
        if TARGETS[target].admits(unit, fmt) and not admits(unit, fmt)
    ]
    assert wrong == []


def test_ties_bind_units_of_one_model_only_by_name_and_role(target: str) -> None:
    """A tie is a name, and the same for a unit whatever else is asked of it."""
    for unit in UNITS:
        tie = TARGETS[target].tie(unit)
        assert tie is None or (tie != "" and tie != unit.name)
        assert TARGETS[target].tie(replace(unit, matrices=(Matrix("other", (8, 8)),), native="bf16")) == tie


@pytest.mark.parametrize("model", ["tiny", "experts"])
def test_a_plan_keeps_formats_ties_and_bytes(target: str, model: str) -> None:
    found = fakes.inventory(model)
    profile = ProfileRequest(model)
    smallest = check_budget(found, PlanRequest(profile, "100%", target)).minimum_bytes
    for budget in (smallest, (smallest + found.native_bytes) // 2, found.native_bytes - 1):
        request = PlanRequest(profile, str(budget), target)
        plan = plan_from_profile(found, fakes.report(request.measured), request)
        stranger.check(plan.to_json())
        assert all(TARGETS[target].admits(unit, FORMATS[plan.assignment[unit.name]]) for unit in found.units)
        tied = defaultdict(set)
        for unit in found.units:
            tied[TARGETS[target].tie(unit) or unit.name].add(plan.assignment[unit.name])
        assert all(len(formats) == 1 for formats in tied.values())
