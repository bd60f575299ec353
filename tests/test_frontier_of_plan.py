from __future__ import annotations

import itertools
from math import fsum

import pytest

import fakes
from bitplan.allocator import Plan, PlanRequest, ProfileRequest, UnknownName, plan_from_profile

MODELS = ("tiny", "experts")
TARGETS = ("native", "vllm")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
class TestFrontier:
    def test_it_runs_from_the_smallest_plan_to_no_loss(self, model: str, target: str) -> None:
        plan = fakes.plan("40%", model, target)
        first, last = plan.frontier()[0], plan.frontier()[-1]
        assert first["bytes"] == plan.budget.minimum_bytes
        assert (last["bytes"], last["loss"], last["multiplier"]) == (plan.model.native_bytes, 0, 0)

    def test_more_bytes_lose_less_and_each_saves_less_than_the_one_before(self, model: str, target: str) -> None:
        points = fakes.plan("40%", model, target).frontier()
        assert len(points) > 10
        for here, after in itertools.pairwise(points):
            assert here["bytes"] < after["bytes"]
            assert here["loss"] > after["loss"]
            assert here["multiplier"] >= after["multiplier"]
            saved = (here["loss"] - after["loss"]) / (after["bytes"] - here["bytes"])
            # Slopes are drawn in integer losses, of which rounding may cost the last digits.
            assert here["multiplier"] == pytest.approx(saved, rel=1e-6)

    def test_a_plan_at_a_vertex_loses_what_the_frontier_says(self, model: str, target: str) -> None:
        points = fakes.plan("40%", model, target).frontier()
        for point in points[:: len(points) // 5]:
            plan = fakes.plan(str(int(point["bytes"])), model, target)
            assert plan.predicted.loss == pytest.approx(point["loss"], rel=1e-9, abs=1e-15)
            assert plan.certificate.proof == "multipliers"

    def test_no_plan_lies_below_it(self, model: str, target: str) -> None:
        """Between two vertices the straight line is a bound."""
        points = fakes.plan("40%", model, target).frontier()
        for budget in ("23%", "31%", "47%", "66%"):
            plan = fakes.plan(budget, model, target)
            spent = plan.predicted.bytes.total
            here = max((point for point in points if point["bytes"] <= spent), key=lambda point: point["bytes"])
            line = here["loss"] - here["multiplier"] * (spent - here["bytes"])
            assert plan.predicted.loss >= line * (1 - 1e-9)

    def test_it_does_not_depend_on_the_budget(self, model: str, target: str) -> None:
        one, other = (fakes.plan(budget, model, target).frontier() for budget in ("30%", "70%"))
        assert one == other


def test_pins_shorten_the_frontier() -> None:
    plan = fakes.plan("60%", pins=((".*_proj", "int8-g64-asym"),))
    points = plan.frontier()
    assert points[0]["bytes"] == plan.budget.minimum_bytes > fakes.plan().budget.minimum_bytes
    assert points[-1]["bytes"] == plan.budget.maximum_bytes < plan.model.native_bytes
    assert points[-1]["loss"] > 0


class TestExplain:
    PLAN = fakes.plan("30%", "experts")

    def test_the_taken_alternatives_add_up_to_the_plan(self) -> None:
        taken = [
            alternative
            for unit in self.PLAN.assignment
            for alternative in self.PLAN.explain(unit)["alternatives"]
            if alternative["taken"]
        ]
        assert [alternative["format"] for alternative in taken] == list(self.PLAN.assignment.values())
        bytes_ = self.PLAN.predicted.bytes
        assert sum(alternative["bytes"] for alternative in taken) + bytes_.fixed == bytes_.total
        assert fsum(alternative["loss"] for alternative in taken) == pytest.approx(self.PLAN.predicted.loss, rel=1e-9)

    def test_every_format_is_an_alternative_with_its_measured_loss(self) -> None:
        report = fakes.report(ProfileRequest("experts"))
        name = "model.layers.2.mlp.experts.1"
        explained = self.PLAN.explain(name)
        assert (explained["unit"], explained["tied_with"], explained["format"]) == (name, [], self.PLAN.assignment[name])
        row = report.loss[report.units.index(name)]
        assert [alternative["format"] for alternative in explained["alternatives"]] == list(report.formats)
        assert [alternative["loss"] for alternative in explained["alternatives"]] == pytest.approx(row.tolist(), rel=1e-9)

    def test_the_format_taken_is_the_cheapest_at_the_plans_price(self) -> None:
        """True where the multipliers alone prove the plan: at a vertex of the frontier."""
        vertex = self.PLAN.frontier()[7]
        plan = fakes.plan(str(int(vertex["bytes"])), "experts")
        for unit in plan.assignment:
            alternatives = plan.explain(unit)["alternatives"]
            (taken,) = (alternative["priced"] for alternative in alternatives if alternative["taken"])
            # One alternative is priced exactly like another where the plan's price makes them equal.
            assert taken <= min(alternative["priced"] for alternative in alternatives) * (1 + 1e-9)

    def test_what_is_not_allowed_is_no_alternative(self) -> None:
        plan = fakes.plan("40%", target="vllm", pins=((".*o_proj", "int4-g64-asym"),))
        assert [a["format"] for a in plan.explain("model.embed_tokens")["alternatives"]] == ["bf16"]
        assert [a["format"] for a in plan.explain("model.layers.0.self_attn.o_proj")["alternatives"]] == ["int4-g64-asym"]

    def test_tied_units_are_explained_together(self) -> None:
        plan = fakes.plan("40%", target="vllm")
        q, k, v = (f"model.layers.1.self_attn.{part}_proj" for part in "qkv")
        assert plan.explain(q)["tied_with"] == [k, v]
        assert plan.explain(k)["tied_with"] == [q, v]
        assert plan.explain(q)["alternatives"] == plan.explain(v)["alternatives"]

    def test_an_unknown_unit_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(UnknownName, match=r"did you mean 'model\.layers\.2\.mlp\.experts\.1'"):
            self.PLAN.explain("model.layers.2.mlp.expert.1")


def test_a_plan_read_back_explains_the_same() -> None:
    plan = plan_from_profile(fakes.inventory(), fakes.report(ProfileRequest("tiny")), PlanRequest(ProfileRequest("tiny"), "30%"))
    again = Plan.from_json(plan.to_json())
    assert again.frontier() == plan.frontier()
    assert all(again.explain(unit) == plan.explain(unit) for unit in plan.assignment)
