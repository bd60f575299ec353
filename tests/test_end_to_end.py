"""From a model's folder to a verified plan, for every kind of model: the promises of the contract, one by one.

Promise 5, that nothing finished is lost or done again, is held by `test_profile.py` and `test_jobs.py`.
"""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

import models
import stranger
from bitplan.allocator import Plan, check_budget, inspect_model, known_inventory, known_profile, plan_from_profile
from shelf import KINDS, Shelf

pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_the_plan_is_of_this_model(kind: str, shelf: Shelf) -> None:
    plan, expected = shelf.plan(kind), models.network(kind).inventory
    assert plan.model.id == str(shelf.model(kind))
    assert (plan.model.fingerprint, plan.model.native_bytes) == (expected.fingerprint, expected.native_bytes)
    assert plan.model.family == models.KINDS[kind].family
    assert list(plan.assignment) == [unit.name for unit in expected.units]
    assert len(set(plan.assignment.values())) > 1  # a budget that makes it choose


def test_promise_1_the_bytes_are_those_predicted_and_within_the_budget(kind: str, shelf: Shelf) -> None:
    plan = shelf.plan(kind)
    tensors = load_file(shelf.executed(kind) / "model.safetensors")
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert stored == plan.predicted.bytes.total == shelf.report(kind).bytes["measured"] <= plan.budget.limit_bytes


def test_promise_2_the_certificate_can_be_checked_by_a_stranger(kind: str, shelf: Shelf) -> None:
    text = (shelf.executed(kind) / "plan.json").read_text()
    gap = stranger.check(text)
    assert json.loads(text)["certificate"]["proof"] == ("multipliers" if gap == 0 else "search")


def test_promise_3_no_plan_is_passed_that_measures_worse_than_its_rival(kind: str, shelf: Shelf) -> None:
    report = shelf.report(kind)
    assert report.promise_kept
    assert report.paired is not None
    worse = report.paired["difference"] > 2 * report.paired["stderr"]
    assert report.passed != worse
    if worse:
        assert report.rivals[0]["name"] in report.verdict


def test_promise_4_the_same_request_gives_the_same_plan(kind: str, shelf: Shelf) -> None:
    first, again = shelf.plan(kind), shelf.plan(kind)
    assert (first.id, first.assignment, first.certificate) == (again.id, again.assignment, again.certificate)


def test_promise_4_holds_for_a_server_that_has_no_torch(kind: str, shelf: Shelf) -> None:
    """Planned from what is stored alone."""
    request = shelf.request(kind)
    plan = shelf.plan(kind)
    found, report = known_inventory(request.profile.model, shelf.home), known_profile(request.measured, shelf.home)
    assert found is not None
    assert report is not None
    assert plan_from_profile(found, report, request).id == plan.id


def test_promise_6_predicted_and_measured_stand_side_by_side(kind: str, shelf: Shelf) -> None:
    plan, report = shelf.plan(kind), shelf.report(kind)
    assert report.loss["predicted"] == plan.predicted.loss
    assert report.loss["measured"] is not None
    document = plan.model_copy(update={"evidence": report.to_json()})
    again = json.loads(Plan.from_json(document.to_json()).to_json())
    assert again["evidence"]["loss"]["measured"] == report.loss["measured"]
    assert again["evidence"]["loss"]["predicted"] == again["predicted"]["loss"]
    # Second order, single units and a few hundred tokens, against all units together: the same order of magnitude.
    assert 0.1 < report.loss["measured"] / plan.predicted.loss < 10


def test_every_budget_of_the_frontier_is_kept(kind: str, shelf: Shelf) -> None:
    points = shelf.plan(kind).frontier()
    for point in points[:: max(1, len(points) // 4)]:
        plan = shelf.plan(kind, str(int(point["bytes"])))
        assert plan.predicted.bytes.total == point["bytes"]
        stranger.check(plan.to_json())


def test_the_vllm_target_plans_it_too(kind: str, shelf: Shelf) -> None:
    found = inspect_model(str(shelf.model(kind)), home=shelf.home)
    smallest = check_budget(found, shelf.request(kind, "100%", "vllm")).minimum_bytes
    plan = shelf.plan(kind, str((smallest + found.native_bytes) // 2), "vllm")
    stranger.check(plan.to_json())
    for unit in found.units:
        if unit.kind in ("conv", "embedding"):
            assert plan.assignment[unit.name] == unit.native
