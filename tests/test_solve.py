from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from math import fsum
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fakes
import stranger
from bitplan.allocator import SOLVERS, BitplanError, Infeasible, Plan, PlanRequest, ProfileRequest, plan_from_profile
from bitplan.allocator.solve import check_budget, needs_profile
from bitplan.kernels.formats import FORMATS
from bitplan.solvers.problem import ChoiceProblem, Solution, without_choice

PROFILE = ProfileRequest("tiny")
FOUND = fakes.inventory()


def plan(budget: str = "25%", model: str = "tiny", **more: Any) -> Plan:
    request = PlanRequest(ProfileRequest(model), budget, **more)
    return plan_from_profile(fakes.inventory(model), fakes.report(request.measured), request)


def test_planning_needs_no_torch() -> None:
    """From documents on disk to a plan, in a process of its own."""
    code = """
import json, sys
from bitplan.allocator import Inventory, PlanRequest, ProfileRequest, SensitivityReport, plan_from_profile
found, report = json.load(sys.stdin)
request = PlanRequest(ProfileRequest("tiny"), "25%", "vllm", pins=((".*o_proj", "int8-g64-asym"),))
plan = plan_from_profile(Inventory.from_json(found), SensitivityReport.from_json(report), request)
plan.frontier(), plan.explain("model.embed_tokens")
heavy = {"torch", "transformers", "triton", "gguf", "accelerate"} & sys.modules.keys()
assert not heavy, heavy
print(plan.id)
"""
    documents = json.dumps([FOUND.to_json(), fakes.report(PROFILE).to_json()])
    done = subprocess.run([sys.executable, "-c", code], input=documents, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == plan("25%", target="vllm", pins=((".*o_proj", "int8-g64-asym"),)).id


@pytest.mark.parametrize("target", ["native", "vllm"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("model", ["tiny", "experts"])
def test_a_stranger_can_check_the_certificate(model: str, solver: str, target: str) -> None:
    smallest = plan("100%", model, target=target).budget.minimum_bytes
    for budget in (str(smallest), "31%", "47%", "80%"):
        stranger.check(plan(budget, model, target=target, solver=solver).to_json())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["certificate"]["choice"].reverse(),
        lambda d: d["certificate"].update(lower_bound=d["certificate"]["lower_bound"] * 1.001),
        lambda d: d["certificate"].update(multiplier_numerator=d["certificate"]["multiplier_numerator"] + 1),
        lambda d: d["certificate"].update(limit=d["certificate"]["limit"] - 1000),
        lambda d: d["predicted"].update(loss=d["predicted"]["loss"] * 0.999),
        lambda d: d["predicted"]["bytes"].update(total=d["predicted"]["bytes"]["total"] - 1),
        lambda d: d["assignment"].update({"model.embed_tokens": "bf16"}),
    ],
)
def test_the_stranger_notices_a_lie(change: Any) -> None:
    document = json.loads(plan().to_json())
    stranger.check(json.dumps(document))
    change(document)
    with pytest.raises(AssertionError):
        stranger.check(json.dumps(document))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=9, max_size=9), st.integers(0, 100))
def test_no_plan_of_three_units_is_better(losses: list[int], share: int) -> None:
    """Against trying every assignment, with bytes counted here."""
    units = FOUND.units[:3]
    found = replace(FOUND, units=units)
    formats = ("int2-g64-asym", "int4-g64-asym", "bf16")
    loss = np.array(losses, dtype=np.float64).reshape(3, 3)
    loss[:, 2] = 0
    profile = ProfileRequest("tiny", formats=formats[:2])
    measured = replace(fakes.report(profile), units=tuple(unit.name for unit in units), formats=formats, loss=loss, stderr=None)
    sizes = [[unit.stored_bytes(FORMATS[fmt]) for fmt in formats] for unit in units]
    smallest, largest = sum(row[0] for row in sizes), sum(row[2] for row in sizes)
    limit = smallest + (largest - smallest) * share // 100
    made = plan_from_profile(found, measured, PlanRequest(profile, str(limit + found.fixed_bytes)))
    best = min(
        sum(loss[i, j] for i, j in enumerate(choice))
        for choice in itertools.product(range(3), repeat=3)
        if sum(sizes[i][j] for i, j in enumerate(choice)) <= limit
    )
    assert made.predicted.loss == best
    assert made.certificate.proof != "bound"


def test_predicted_bytes_follow_from_the_assignment() -> None:
    made = plan("30%", "experts", target="vllm", pins=((".*q_proj", "int8-row"),))
    found, predicted = fakes.inventory("experts"), made.predicted.bytes
    parts = dict.fromkeys(("codes", "scales", "zeros", "native"), 0)
    by_format: dict[str, int] = {}
    for unit in found.units:
        fmt = FORMATS[made.assignment[unit.name]]
        by_format[fmt.name] = by_format.get(fmt.name, 0) + unit.stored_bytes(fmt)
        for matrix in unit.matrices:
            if fmt.family == "float":
                parts["native"] += 2 * matrix.shape[0] * matrix.shape[1]
            else:
                for part, count in fmt.parts_bytes(matrix.shape).items():
                    parts[part] += count
    assert {name: getattr(predicted, name) for name in parts} == parts
    assert predicted.by_format == by_format
    assert predicted.fixed == found.fixed_bytes
    assert predicted.total == sum(parts.values()) + found.fixed_bytes <= made.budget.limit_bytes
    assert made.predicted.stored_bits_per_weight == 8 * sum(parts.values()) / found.unit_parameters
    nominal = sum(FORMATS[made.assignment[unit.name]].bits * unit.parameters for unit in found.units)
    assert made.predicted.nominal_bits_per_weight == nominal / found.unit_parameters


def test_predicted_loss_and_error_follow_from_the_profile() -> None:
    made, measured = plan("30%"), fakes.report(PROFILE)
    assert measured.stderr is not None
    at = [(measured.units.index(name), measured.formats.index(fmt)) for name, fmt in made.assignment.items()]
    assert made.predicted.loss == pytest.approx(fsum(measured.loss[cell] for cell in at), rel=1e-12)
    assert made.predicted.stderr == pytest.approx(fsum(measured.stderr[cell] for cell in at), rel=1e-12)
    assert made.predicted.quantity == fakes.QUANTITY
    without = plan_from_profile(FOUND, replace(measured, stderr=None), PlanRequest(PROFILE, "30%"))
    assert without.predicted.stderr is None


@pytest.mark.parametrize("solver", ["best", "dp"])
def test_a_larger_budget_is_never_worse_and_never_broken(solver: str) -> None:
    plans = [plan(f"{percent}%", solver=solver) for percent in range(20, 101, 4)]
    losses = [made.predicted.loss for made in plans]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0
    for made in plans:
        assert made.predicted.bytes.total <= made.budget.limit_bytes


def test_the_asked_solver_is_the_one_that_answers_and_none_beats_the_best() -> None:
    plans = {name: plan("33%", solver=name) for name in SOLVERS}
    assert [plans[name].provenance.solver for name in ("best", "dp", "hull", "uniform")] == ["core", "dp", "hull", "uniform"]
    assert plans["best"].predicted.loss <= min(made.predicted.loss for made in plans.values())
    assert plans["best"].predicted.loss < plans["uniform"].predicted.loss


class TestUntouched:
    """A budget that holds the model asks for nothing, not even a profile."""

    @pytest.mark.parametrize("budget", [str(FOUND.native_bytes), "100%", "101%", "3TB", "16bpw"])
    def test_the_model_is_left_as_it_is(self, budget: str) -> None:
        request = PlanRequest(PROFILE, budget)
        assert not needs_profile(FOUND, request)
        made = plan_from_profile(FOUND, None, request)
        assert made.assignment == {unit.name: unit.native for unit in FOUND.units}
        assert made.predicted.loss == made.certificate.gap == 0
        assert made.predicted.bytes.total == made.predicted.bytes.native + made.predicted.bytes.fixed == FOUND.native_bytes
        assert made.provenance.profile_id is None
        stranger.check(made.to_json())

    def test_a_budget_above_the_model_says_so(self) -> None:
        (note,) = plan_from_profile(FOUND, None, PlanRequest(PROFILE, str(FOUND.native_bytes + 1))).notes
        assert f"above the model's own size, {FOUND.native_bytes / 1024:.4g} KiB ({FOUND.native_bytes:,} bytes)" in note
        assert plan_from_profile(FOUND, None, PlanRequest(PROFILE, "100%")).notes == []

    def test_nothing_is_claimed_of_what_was_not_measured(self) -> None:
        made = plan_from_profile(FOUND, None, PlanRequest(PROFILE, "100%"))
        assert made.frontier() == [{"bytes": FOUND.native_bytes, "loss": 0.0, "multiplier": 0.0}]
        (only,) = made.explain("model.embed_tokens")["alternatives"]
        assert only["format"] == "bf16"

    def test_one_byte_less_needs_a_profile_and_so_do_pins(self) -> None:
        assert needs_profile(FOUND, PlanRequest(PROFILE, str(FOUND.native_bytes - 1)))
        assert needs_profile(FOUND, PlanRequest(PROFILE, "3TB", pins=(("model.embed_tokens", "int4-g64"),)))


class TestIdentity:
    def test_the_same_request_is_the_same_plan(self) -> None:
        one, other = plan(), plan()
        assert one.id == other.id
        aside = {"created_at", "solve_seconds"}
        assert one.model_dump(exclude={"provenance": aside}) == other.model_dump(exclude={"provenance": aside})

    def test_what_another_way_of_asking_does_not_change(self) -> None:
        """The same bytes in other words, and another solver that finds the same plan."""
        limit = plan().budget.limit_bytes
        assert plan(str(limit)).id == plan(f" {limit / 1024} KiB ").id == plan().id
        assert plan(solver="dp").id == plan().id

    def test_what_makes_it_another_plan(self) -> None:
        ids = {
            plan().id,
            plan("26%").id,
            plan(target="vllm").id,
            plan(model="experts").id,
            plan(pins=((".*o_proj", "int4-g64-asym"),)).id,
            plan_from_profile(FOUND, replace(fakes.report(PROFILE), id="another"), PlanRequest(PROFILE, "25%")).id,
        }
        assert len(ids) == 6


def test_a_budget_below_the_least_is_refused_with_and_without_a_profile() -> None:
    with pytest.raises(Infeasible) as by_bytes:
        check_budget(FOUND, PlanRequest(PROFILE, "2bpw"))
    with pytest.raises(Infeasible) as by_profile:
        plan("2bpw")
    assert str(by_bytes.value) == str(by_profile.value)
    assert plan(str(by_bytes.value.minimum_bytes)).predicted.bytes.total == by_bytes.value.minimum_bytes


def test_units_that_the_data_never_reached_are_noted() -> None:
    measured = fakes.report(PROFILE)
    loss = measured.loss.copy()
    loss[[2, 5]] = 0
    (note,) = plan_from_profile(FOUND, replace(measured, loss=loss), PlanRequest(PROFILE, "25%")).notes
    assert note.startswith(f"2 units were never reached by the calibration data ({FOUND.units[2].name}, ...)")
    assert plan().notes == []


def test_a_solver_that_finds_nothing_is_an_error_that_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
        return without_choice(problem, None, "dp", 0.0)

    monkeypatch.setitem(SOLVERS, "dp", give_up)
    with pytest.raises(BitplanError, match=r"solver 'dp' found no plan .*; use the solver 'best'"):
        plan(solver="dp")


def test_provenance_says_where_the_numbers_come_from() -> None:
    made, measured = plan(), fakes.report(PROFILE)
    provenance = made.provenance
    assert (provenance.profile_id, provenance.metric, provenance.seed) == (measured.id, "kl_fisher", 0)
    assert (provenance.data_fingerprint, provenance.render_fingerprint) == ("d" * 64, "r" * 64)
    assert provenance.settings == {"tokens": 4096, "calibration": None, "formats": None}
    assert {"python", "bitplan", "numpy"} <= provenance.versions.keys()
    assert (made.model.id, made.model.fingerprint, made.model.native_bytes) == ("tiny", FOUND.fingerprint, FOUND.native_bytes)
    fixed = sum(tensor.shape[0] for tensor in FOUND.fixed)
    assert made.model.parameters == FOUND.unit_parameters + fixed
