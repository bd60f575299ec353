"""Planning in the service's process: the fast way and the plain one give the same plans, and what is kept goes stale never."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fakes
import stranger
from bitplan import allocator
from bitplan.allocator import Infeasible, NotFound, Plan, PlanRequest, ProfileRequest, UnknownName, plan_from_profile
from bitplan.allocator.document import PlanDocument, PlanWriter
from bitplan.allocator.groundwork import lay_groundwork
from bitplan.api.kept import Kept
from bitplan.api.planning import Planner
from bitplan.api.schema import PlanBody
from bitplan.api.store import Store

PINS = ((), ((".*o_proj", "int8-g64-asym"),), ((".*q_proj", "native"), (".*o_proj", "int8-g64-asym")))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    fakes.install(monkeypatch)
    with closing(Store.open(f"sqlite:///{tmp_path / 'bitplan.db'}")) as opened:
        yield opened


@pytest.fixture
def planner(store: Store, tmp_path: Path) -> Planner:
    fakes.profile_model(ProfileRequest("tiny"), home=tmp_path)
    return Planner(store, tmp_path)


def body(budget: str = "25%", model: str = "tiny", **more: Any) -> PlanBody:
    return PlanBody(model=model, budget=budget, **more)


def ready(planner: Planner, asked: PlanBody) -> PlanDocument:
    document = planner.ready(asked)
    assert document is not None
    return document


def lasting(text: str) -> dict[str, Any]:
    """All but the two fields that no two makings of a plan share."""
    document: dict[str, Any] = json.loads(text)
    for name in ("created_at", "solve_seconds"):
        del document["provenance"][name]
    return document


class TestWriter:
    """Two implementations against each other: text joined from pieces, and a plan of objects written by pydantic."""

    @pytest.mark.parametrize("target", ["native", "vllm"])
    @pytest.mark.parametrize("model", ["tiny", "experts"])
    @pytest.mark.parametrize("pins", PINS)
    def test_the_joined_text_is_the_plans_own_to_the_byte(self, pins: Any, model: str, target: str) -> None:
        profile = ProfileRequest(model)
        found, first = fakes.inventory(model), PlanRequest(profile, "100%", target, pins=pins)
        report = fakes.report(first.measured)
        writer = PlanWriter(lay_groundwork(found, report, first))
        for budget in ("100%", "43%", "57.3%", "6bpw", "120%", "80%"):
            request = replace(first, budget=budget)
            document = writer.write(request)
            plan = Plan.from_json(document.text)
            assert plan.model_dump_json() == document.text
            assert lasting(document.text) == lasting(plan_from_profile(found, report, request).model_dump_json())
            assert (document.id, document.gap, document.predicted) == (plan.id, plan.certificate.gap, plan.predicted)
            stranger.check(document.text)

    @pytest.mark.parametrize("solver", ["best", "core", "hull", "dp", "greedy"])
    def test_whatever_the_solver(self, solver: str) -> None:
        request = PlanRequest(ProfileRequest("tiny"), "27%", solver=solver)
        report = fakes.report(request.measured)
        written = PlanWriter(lay_groundwork(fakes.inventory(), report, request)).write(request)
        assert lasting(written.text) == lasting(plan_from_profile(fakes.inventory(), report, request).model_dump_json())

    def test_with_a_limit_on_the_latency_and_with_nothing_measured(self) -> None:
        slow = PlanRequest(ProfileRequest("tiny"), "40%", latency_ms=0.5)
        report = fakes.report(slow.measured)
        written = PlanWriter(lay_groundwork(fakes.inventory(), report, slow)).write(slow)
        assert lasting(written.text) == lasting(plan_from_profile(fakes.inventory(), report, slow).model_dump_json())
        whole = PlanRequest(ProfileRequest("tiny"), "100%")
        written = PlanWriter(lay_groundwork(fakes.inventory(), None, whole)).write(whole)
        assert lasting(written.text) == lasting(plan_from_profile(fakes.inventory(), None, whole).model_dump_json())

    def test_names_that_json_must_escape(self) -> None:
        plain = fakes.inventory()
        names = ['a"b', "back\\slash", "línea", "\u2028", "\x07", "日本"]
        units = tuple(replace(unit, name=name) for unit, name in zip(plain.units, names, strict=False))
        found, profile = replace(plain, units=units, model_id='mod"el\n'), ProfileRequest("tiny")
        report = fakes.report(profile)
        report = replace(report, units=tuple(names), loss=report.loss[: len(names)], stderr=None)
        request = PlanRequest(profile, "40%")
        written = PlanWriter(lay_groundwork(found, report, request)).write(request)
        assert Plan.from_json(written.text).model_dump_json() == written.text
        assert written.id == plan_from_profile(found, report, request).id

    def test_what_was_not_measured_is_null_in_the_certificate(self) -> None:
        request = PlanRequest(ProfileRequest("tiny"), "60%")
        report = fakes.report(request.measured)
        loss = report.loss.copy()
        loss[3, :2] = np.nan
        report = replace(report, loss=loss)
        written = PlanWriter(lay_groundwork(fakes.inventory(), report, request)).write(request)
        assert json.loads(written.text)["certificate"]["loss"][3][:2] == [None, None]
        assert lasting(written.text) == lasting(plan_from_profile(fakes.inventory(), report, request).model_dump_json())


class TestPlanner:
    def test_nothing_inspected_or_nothing_measured_is_no_plan(self, store: Store, tmp_path: Path) -> None:
        planner = Planner(store, tmp_path)
        assert planner.ready(body()) is None
        fakes.inspect_model("tiny", home=tmp_path)
        assert planner.ready(body()) is None
        with pytest.raises(Infeasible):
            planner.ready(body("2bpw"))
        assert Plan.from_json(ready(planner, body("100%")).text).provenance.profile_id is None
        fakes.profile_model(ProfileRequest("tiny"), home=tmp_path)
        assert ready(planner, body()).id == fakes.plan().id

    def test_what_the_home_holds_goes_to_the_store_and_is_then_planned_from_there(
        self, planner: Planner, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = ready(planner, body())
        (profile,) = store.profiles().items
        assert made.provenance.profile_id == profile.id
        monkeypatch.setattr(allocator, "known_profile", None)
        assert ready(Planner(store, tmp_path), body()).id == made.id

    def test_a_wider_profile_serves_a_narrower_palette(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wide, narrow = ("int2-g64", "int4-g64", "int8-g64"), ("int4-g64", "int8-g64")
        fakes.profile_model(ProfileRequest("tiny", formats=wide), home=tmp_path)
        ready(Planner(store, tmp_path), body("60%", formats=wide))
        monkeypatch.setattr(allocator, "known_profile", lambda *_: None)
        document = ready(Planner(store, tmp_path), body("60%", formats=narrow))
        assert set(Plan.from_json(document.text).certificate.formats) == {*narrow, "bf16"}

    def test_a_model_on_other_machines_only_is_planned_from_what_was_inspected_there(
        self, planner: Planner, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = ready(planner, body())
        monkeypatch.setattr(allocator, "source_key", lambda *_: None)
        elsewhere = Planner(store, tmp_path / "elsewhere")
        assert ready(elsewhere, body()).id == made.id
        assert elsewhere.ready(body(model="experts")) is None

    def test_files_that_changed_are_another_model(
        self, planner: Planner, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = ready(planner, body())
        changed = replace(fakes.inventory(), fingerprint="c" * 64)
        monkeypatch.setattr(allocator, "source_key", lambda *_: "another key")
        monkeypatch.setattr(allocator, "known_inventory", lambda *_: changed)
        monkeypatch.setattr(allocator, "known_profile", lambda *_: None)
        assert planner.ready(body()) is None, "the old profile is not of this model"
        monkeypatch.setattr(allocator, "source_key", fakes.source_key)
        assert ready(planner, body()).id == before.id

    @pytest.mark.parametrize("budget", ["25%", "3bpw", "100%", "150%"])
    @pytest.mark.parametrize("target", ["native", "vllm"])
    def test_a_preview_is_what_a_post_returns(self, planner: Planner, store: Store, budget: str, target: str) -> None:
        ready(planner, body())
        (profile,) = store.profiles().items
        _, measured = store.profile(profile.id)
        posted = ready(planner, PlanBody(**measured.model_dump(), budget=budget, target=target))
        previewed = planner.preview(profile.id, budget, target, "best")
        assert lasting(previewed.text) == lasting(posted.text)
        assert ready(planner, body(budget, target=target)).id == previewed.id
        assert planner.preview(profile.id[:12], budget, target, "best").id == previewed.id
        assert store.plans().items == []

    def test_a_preview_refuses_as_a_post_does(self, planner: Planner, store: Store) -> None:
        ready(planner, body())
        (profile,) = store.profiles().items
        with pytest.raises(NotFound):
            planner.preview("0" * 64, "25%", "native", "best")
        with pytest.raises(UnknownName):
            planner.preview(profile.id, "25%", "nowhere", "best")
        with pytest.raises(UnknownName):
            planner.preview(profile.id, "25%", "native", "pairing")
        with pytest.raises(Infeasible):
            planner.preview(profile.id, "1", "native", "best")

    def test_the_unlimited_plan_holds_the_whole_tables(self, planner: Planner, store: Store) -> None:
        ready(planner, body())
        (profile,) = store.profiles().items
        whole = planner.unlimited(profile.id, "native")
        assert whole.provenance.profile_id == profile.id
        assert whole.frontier() == Plan.from_json(ready(planner, body()).text).frontier()


class TestKept:
    def test_the_one_not_used_for_longest_goes_first(self) -> None:
        kept: Kept[str, int] = Kept(2, 100, lambda _: 1)
        kept.put("a", 1)
        kept.put("b", 2)
        assert kept.find("a") == 1
        kept.put("c", 3)
        assert (kept.find("a"), kept.find("b"), kept.find("c")) == (1, None, 3)

    def test_a_value_is_made_once(self) -> None:
        kept: Kept[str, list[int]] = Kept(2, 2, lambda _: 1)
        assert kept.get("a", lambda: [1]) is kept.get("a", lambda: [2])

    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12))))
    def test_neither_bound_is_ever_passed(self, puts: list[tuple[int, int]]) -> None:
        kept: Kept[int, int] = Kept(4, 20, lambda weight: weight)
        held: dict[int, int] = {}
        for key, weight in puts:
            kept.put(key, weight)
            held[key] = weight
            alive = {key: value for key, value in held.items() if kept.find(key) == value}
            assert len(kept) <= 4
            assert sum(alive.values()) <= 20
            assert key in alive, "the newest fits, and so it stays"

    def test_what_weighs_more_than_all_is_handed_back_but_not_kept(self) -> None:
        kept: Kept[str, int] = Kept(4, 20, lambda weight: weight)
        kept.put("small", 3)
        assert kept.put("large", 21) == 21
        assert (kept.find("large"), kept.find("small")) == (None, 3)
