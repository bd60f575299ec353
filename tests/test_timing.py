"""A limit on the time of a token: the table it makes, plans under it, refusals, and the way in from everywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

import fakes
import stranger
from bitplan.allocator import SOLVERS, Infeasible, Plan, PlanRequest, ProfileRequest, UnknownName, UsageError, plan_from_profile
from bitplan.allocator.frontier import problem_of
from bitplan.allocator.request import ONE_LIMIT
from bitplan.allocator.solve import check_budget, needs_profile
from bitplan.allocator.timing import time_items
from bitplan.api.cli import main
from bitplan.api.client import Client
from bitplan.api.problems import error_of
from bitplan.api.problems import problem_of as document_of
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from bitplan.kernels import latency_json
from bitplan.kernels.formats import FORMATS
from bitplan.kernels.latency import latency
from bitplan.kernels.latency_json import device_model, to_json
from bitplan.kernels.roofline import Constants, DeviceModel, Point
from bitplan.sensitivity.units import Inventory, Matrix, Unit
from fakes import do_oldest_job

TINY = fakes.inventory()
PROFILE = ProfileRequest("tiny")
# A device on which only instructions take time: a microsecond for 1000 weights at 4 bits, a little more at 2, twice that at 3.
HAND = DeviceModel(
    "hand", Constants(1e30, 1e30, 1e9, 1.0, 1.0, 1.0, 1e-21, 1.0, 0.0, 64, (9, 1.2, 2, 1, 3, 3, 3, 1.5), (1.0,) * 8)
)


@pytest.fixture(autouse=True)
def _tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shipped tables and HAND."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for model in (HAND, device_model("h100"), device_model("h200")):
        (folder / f"{model.name}.json").write_text(json.dumps(to_json(model)))
    device_model.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(latency_json, "TABLES", folder)
        yield
    device_model.cache_clear()


def request(latency_ms: float | None = None, budget: str = "40%", model: str = "tiny", **more: Any) -> PlanRequest:
    return PlanRequest(ProfileRequest(model, formats=more.pop("formats", None)), budget, latency_ms=latency_ms, **more)


def plan(latency_ms: float | None = None, budget: str = "40%", model: str = "tiny", **more: Any) -> Plan:
    asked = request(latency_ms, budget, model, **more)
    return plan_from_profile(fakes.inventory(model), fakes.report(asked.measured), asked)


def _expert(name: str, shape: tuple[int, int]) -> Unit:
    return Unit(name, "expert", "expert", (Matrix(name, shape),), "bf16", None, int(name[-1]))


def least_ms(**more: Any) -> float:
    with pytest.raises(Infeasible) as caught:
        plan(1e-6, **more)
    assert caught.value.minimum_latency_ms is not None
    return caught.value.minimum_latency_ms


class TestTable:
    def times(self, *units: Unit, device: str = "h100", **more: Any) -> list[list[int]]:
        found = replace(TINY, units=units, **more)
        table: list[list[int]] = time_items(
            found, [[unit] for unit in units], ("int4-g64", "int4-row", "bf16"), device
        ).nanoseconds.tolist()
        return table

    def test_a_unit_takes_the_sum_of_its_matrices(self) -> None:
        unit = Unit("u", "linear", "up", (Matrix("u.a", (300, 200)), Matrix("u.b", (200, 150))), "bf16")
        groups = {"int4-g64": (4, 64), "int4-row": (4, None), "bf16": (16, None)}
        expected = [
            1e9 * (latency(300, 200, bits, 1, "h100", group) + latency(200, 150, bits, 1, "h100", group))
            for bits, group in groups.values()
        ]
        (found,) = self.times(unit)
        assert all(0 <= ns - exact < 1 + 1e-6 for ns, exact in zip(found, expected, strict=True))

    def test_an_embedding_is_looked_up_and_a_head_is_multiplied(self) -> None:
        alone = Unit("embed_tokens", "embedding", "embedding", (Matrix("embed_tokens", (256, 64)),), "bf16")
        head = replace(alone, name="lm_head", kind="linear")
        for shared, products in (((), 0), (("lm_head",), 1), (("decoder.embed_tokens",), 0), (("embed_out", "lm_head"), 2)):
            (found,), (once,) = self.times(replace(alone, shared_with=shared)), self.times(head)
            assert found == pytest.approx([products * ns for ns in once], abs=2)
        assert self.times(replace(head, shared_with=("again",)))[0] == pytest.approx([2 * ns for ns in once], abs=2)

    @pytest.mark.parametrize("used", [1, 2, 3, 4, 9])
    def test_of_e_experts_each_counts_k_of_its_time(self, used: int) -> None:
        crowd, few = ([_expert(f"layers.{i}.experts.{e}", (300, 200)) for e in range(n)] for i, n in enumerate((8, 4)))
        alone = Unit("u", "linear", "up", (Matrix("u", (300, 200)),), "bf16")
        (full,) = self.times(alone)
        found = self.times(*crowd, *few, alone, experts_used=used)
        exact = 1e9 * latency(300, 200, 4, 1, "h100", 64)
        for rows, experts in ((found[:8], 8), (found[8:12], 4)):
            assert rows == [rows[0]] * experts
            assert 0 <= rows[0][0] - exact * min(used, experts) / experts < 1 + 1e-6
        assert found[12] == full
        assert self.times(*crowd, alone) == [full] * 9

    def test_an_expert_of_two_layers_is_used_in_both(self) -> None:
        shared = replace(_expert("layers.0.experts.0", (300, 200)), shared_with=("layers.1.experts.0",))
        others = [_expert(f"layers.{i}.experts.{e}", (300, 200)) for i, n in enumerate((2, 4)) for e in range(1, n)]
        both, one, other = (self.times(shared, *others, experts_used=1)[i][0] for i in (0, 1, 2))
        assert both == pytest.approx(one + other, abs=2)
        assert one == pytest.approx(2 * other, abs=2)

    def test_what_has_no_decoding_step_is_refused(self) -> None:
        conv = Unit("conv", "conv", "conv", (Matrix("conv", (8, 27)),), "bf16")
        for units, outputs in (((conv,), "tokens"), (TINY.units, "classes")):
            with pytest.raises(UsageError, match=r"counts one decoding step, and tiny \(causal-lm\) has none; leave it out"):
                self.times(*units, outputs=outputs)

    def test_known_are_those_between_points_only(self) -> None:
        points = tuple(Point("k", 64, width, 4, 1, 1e-6, 64) for width in (64, 128))
        model = replace(HAND, name="points", points=points, date="2026-01-01", machine="m")
        (latency_json.TABLES / "points.json").write_text(json.dumps(to_json(model)))
        names = ("int4-g64", "int4-g32", "int8-g64")
        timing = time_items(TINY, [[unit] for unit in TINY.units[1:3]], names, "points")
        assert timing.known.tolist() == [[True, True, False]] * 2
        made = plan(100, formats=("int4-g64",), latency_device="points", pins=((".*", "int4-g64"),), budget="100%")
        assert made.predicted.latency is not None
        assert not made.predicted.latency.measured  # the head and the wide matrices are larger than what was measured
        assert made.predicted.latency.source == "measured on 2026-01-01; some products by its formula"


class TestPlans:
    def test_a_slow_narrow_format_is_avoided_though_it_loses_less_for_its_bytes(self) -> None:
        settings: Any = {"budget": "25%", "formats": ("int2-g64", "int3-g64", "int4-g64", "int8-g64")}
        free = plan(**settings)
        quick = plan(1.01 * least_ms(**settings, latency_device="hand"), **settings, latency_device="hand")
        threes = [sum(fmt == "int3-g64" for fmt in made.assignment.values()) for made in (free, quick)]
        assert threes[1] < threes[0]
        assert quick.predicted.loss >= free.predicted.loss
        wide = {**settings, "budget": "28%", "latency_device": "hand"}
        assert set(plan(least_ms(**wide), **wide).assignment.values()) == {"int4-g64"}

    @pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ONE_LIMIT])
    @pytest.mark.parametrize("model", ["tiny", "experts"])
    def test_a_stranger_can_check_both_limits(self, solver: str, model: str) -> None:
        least = least_ms(model=model)
        for factor in (1.02, 1.2):
            made = plan(factor * least, model=model, solver=solver)
            stranger.check(made.to_json())
            assert made.predicted.latency is not None
            assert made.predicted.latency.ms <= factor * least
            assert made.predicted.bytes.total <= made.budget.limit_bytes

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d["certificate"]["latency"].update(limit=d["certificate"]["latency"]["limit"] - 5000),
            lambda d: d["certificate"]["latency"].update(multiplier_numerator=-1),
            lambda d: d["predicted"]["latency"].update(ms=0.0),
            lambda d: d["certificate"].pop("latency"),
        ],
    )
    def test_the_stranger_notices_a_lie(self, change: Any) -> None:
        document = json.loads(plan(1.05 * least_ms()).to_json())
        change(document)
        with pytest.raises(AssertionError):
            stranger.check(json.dumps(document))

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.integers(0, 50), min_size=9, max_size=9), st.integers(0, 100), st.integers(0, 100))
    def test_no_plan_of_three_units_is_better(self, losses: list[int], share: int, pace: int) -> None:
        """Against trying every assignment; where none keeps both limits, the refusal's smallest latency is the least."""
        shapes = ((64, 64), (96, 64), (31, 64))
        units = tuple(
            replace(unit, matrices=(Matrix(unit.name, shape),)) for unit, shape in zip(TINY.units[1:4], shapes, strict=True)
        )
        found: Inventory = replace(TINY, units=units)
        formats = ("int3-g64", "int4-g64", "bf16")
        loss = np.array(losses, dtype=np.float64).reshape(3, 3)
        loss[:, 2] = 0
        profile = ProfileRequest("tiny", formats=formats[:2])
        names = tuple(unit.name for unit in units)
        measured = replace(fakes.report(profile), units=names, formats=formats, loss=loss, stderr=None)
        sizes = [[unit.stored_bytes(FORMATS[fmt]) for fmt in formats] for unit in units]
        times = time_items(found, [[unit] for unit in units], formats, "hand").nanoseconds.tolist()
        smallest, largest = (sum(f(row) for row in sizes) for f in (min, max))
        limit = smallest + (largest - smallest) * share // 100
        low, high = (sum(f(row) for row in times) for f in (min, max))
        allowance = low + (high - low) * pace // 100
        asked = PlanRequest(profile, str(limit + found.fixed_bytes), latency_ms=allowance / 1e6, latency_device="hand")
        spent = [
            tuple(sum(table[i][j] for i, j in enumerate(choice)) for table in (loss.tolist(), sizes, times))
            for choice in itertools.product(range(3), repeat=3)
        ]
        fitting = [row for row in spent if row[1] <= limit]
        if any(row[2] <= allowance for row in fitting):
            made = plan_from_profile(found, measured, asked)
            assert made.predicted.loss == min(row[0] for row in fitting if row[2] <= allowance)
            assert made.certificate.proof != "bound"
        else:
            with pytest.raises(Infeasible) as caught:
                plan_from_profile(found, measured, asked)
            least = min(row[2] for row in fitting)
            assert caught.value.minimum_latency_ms == least / 1e6
            made = plan_from_profile(found, measured, replace(asked, latency_ms=caught.value.minimum_latency_ms))
            assert made.predicted.latency is not None
            assert made.predicted.latency.ms == least / 1e6

    def test_the_program_of_the_pages_checks_both_limits(self) -> None:
        page = (Path(__file__).parent.parent / "docs" / "how-to-choose.md").read_text(encoding="utf-8")
        names: dict[str, Any] = {}
        exec(page.split("```python\n")[1].split("```")[0], names)
        made = plan(1.05 * least_ms())
        document = made.certificate.model_dump()
        total, bound = names["check"](document)
        assert total == pytest.approx(made.predicted.loss)
        assert bound == made.certificate.lower_bound
        with pytest.raises(AssertionError):
            names["check"](document | {"latency": document["latency"] | {"limit": 1}})

    def test_without_a_limit_nothing_changes(self) -> None:
        text = plan().to_json()
        assert "latency" not in text
        assert "latency" not in json.dumps(plan().model_dump())
        wide = plan(1e6)
        assert wide.assignment == plan().assignment
        assert wide.id != plan().id

    def test_the_limit_is_part_of_the_id(self) -> None:
        ids = {plan().id, plan(1e6).id, plan(1e5).id, plan(1e6, latency_device="h200").id}
        assert len(ids) == 4
        assert plan(1e6).id == plan(1e6, latency_device="h100").id == Plan.from_json(plan(1e6).to_json()).id

    def test_the_document_says_what_the_milliseconds_are(self) -> None:
        made = plan(1e3, model="experts")
        assert made.budget.latency is not None
        assert made.predicted.latency is not None
        assert (made.budget.latency.device, made.budget.latency.limit_ms) == ("h100", 1000)
        assert made.budget.latency.table == device_model("h100").digest
        assert made.budget.latency.minimum_ms == least_ms(model="experts")
        assert not made.predicted.latency.measured
        assert made.predicted.latency.source == "not measured: starting constants"
        guessed, experts = made.notes
        assert guessed.startswith("nothing has been measured on h100 yet: its latencies follow from constants that are guesses")
        assert experts.startswith("the latency counts all experts")
        assert Plan.from_json(made.to_json()) == made

    @pytest.mark.parametrize(("used", "share"), [(2, "2/4"), (9, "4/4")])
    def test_a_plan_counts_the_experts_that_a_token_uses(self, used: int, share: str) -> None:
        asked, all_counted = request(1e3, model="experts"), plan(1e3, model="experts")
        found = replace(fakes.inventory("experts"), experts_used=used)
        made = plan_from_profile(found, fakes.report(asked.measured), asked)
        stranger.check(made.to_json())
        assert made.notes[1].startswith(f"the latency counts {share} of the time of each expert")
        assert made.budget.latency is not None
        assert all_counted.budget.latency is not None
        assert (made.budget.latency.minimum_ms < all_counted.budget.latency.minimum_ms) == (used < 4)
        assert made.predicted.bytes == all_counted.predicted.bytes
        dense = plan_from_profile(replace(TINY, experts_used=used), fakes.report(request().measured), request(1e3))
        assert not any("expert" in note for note in dense.notes)

    def test_frontier_and_explanation(self) -> None:
        made = plan(1.05 * least_ms())
        assert made.frontier() == plan().frontier()
        alternatives = made.explain(TINY.units[1].name)["alternatives"]
        assert {"nanoseconds", "bytes", "priced"} <= alternatives[0].keys()
        assert "nanoseconds" not in plan().explain(TINY.units[1].name)["alternatives"][0]
        assert problem_of(made.certificate).resources == 2


class TestRefusals:
    def test_the_smallest_latency_is_stated_and_can_be_met(self) -> None:
        with pytest.raises(Infeasible) as caught:
            check_budget(TINY, request(0.0001))
        error = caught.value
        assert str(error).startswith("a latency of 0.0001 ms on h100 cannot be met: within 40% the fastest plan of tiny takes")
        assert str(error).endswith("raise --latency-ms or the budget, or allow other formats")
        least = error.minimum_latency_ms
        assert least is not None
        assert f"{least:.6f} ms a token" in str(error)
        made = plan(least)
        assert made.predicted.latency is not None
        assert made.predicted.latency.ms == least
        with pytest.raises(Infeasible):
            plan(least - 1e-6)
        assert least_ms(budget="100%") <= least

    def test_the_error_survives_the_wire(self) -> None:
        with pytest.raises(Infeasible) as caught:
            check_budget(TINY, request(0.0001))
        back = error_of(document_of(caught.value))
        assert isinstance(back, Infeasible)
        assert back.minimum_latency_ms == caught.value.minimum_latency_ms
        assert "minimum_latency_ms" not in document_of(Infeasible("no", 1, 2))

    def test_a_budget_for_the_whole_model_is_no_excuse(self) -> None:
        assert not needs_profile(TINY, request(None, "100%"))
        least = least_ms(budget="100%")
        assert needs_profile(TINY, request(least, "100%"))
        assert not needs_profile(TINY, request(1e3, "100%"))
        untouched = plan_from_profile(TINY, None, request(1e3, "100%"))
        assert set(untouched.assignment.values()) == {"bf16"}
        stranger.check(untouched.to_json())

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e12])
    def test_what_is_no_time_is_refused(self, value: float) -> None:
        with pytest.raises(UsageError, match="ms cannot be kept; give milliseconds above zero, at most 1e\\+09"):
            request(value).check()

    def test_devices_are_known_by_name_and_do_nothing_alone(self) -> None:
        with pytest.raises(
            UnknownName, match=r"unknown latency device 'h10' \(did you mean 'h100'\?\); choose one of: h100, h200, hand"
        ):
            request(1.0, latency_device="h10")._check_latency()
        with pytest.raises(UsageError, match="latency device 'h200' without a limit does nothing; add --latency-ms"):
            request(latency_device="h200").check()

    @pytest.mark.parametrize("solver", ONE_LIMIT)
    def test_solvers_of_one_limit_say_so(self, solver: str) -> None:
        with pytest.raises(UsageError, match=f"solver '{solver}' takes one limit and --latency-ms is a second; use 'best'"):
            plan(1.0, solver=solver)
        problem = problem_of(plan(1.05 * least_ms()).certificate)
        with pytest.raises(ValueError, match="solves problems with one limit"):
            SOLVERS[solver](problem)


class TestWaysIn:
    def test_the_command_line(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        fakes.install(monkeypatch)
        arguments = ["plan", "tiny", "--budget", "40%", "--json", "--latency-ms"]
        assert main([*arguments, "0.00001", "--device", "h200"]) == 3
        least = json.loads(capsys.readouterr().out)["minimum_latency_ms"]
        assert main([*arguments, repr(least), "--device", "h200"]) == 0
        made = Plan.from_json(capsys.readouterr().out)
        assert made.id == plan(least, latency_device="h200").id
        assert main(["show", made.id]) == 0
        said = capsys.readouterr().out
        assert "a token at batch 1 on h200 (not measured: starting constants)" in said
        assert main([*arguments, "1", "--device", "cuda"]) == 2
        assert main(["plan", "tiny", "--budget", "40%", "--device", "h100"]) == 2

    def test_a_table_measured_here_is_a_device_like_any_other(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        points = [
            Point("k", *shape, bits, 1, seconds * bits, 64)
            for shape, seconds in (((64, 64), 1e-6), ((256, 64), 2e-6))
            for bits in (*range(1, 9), 16)
        ]
        model = replace(HAND, name="cpu", points=tuple(points), date="2026-01-01", machine="one thread")
        (latency_json.TABLES / "cpu.json").write_text(json.dumps(to_json(model)))
        fakes.install(monkeypatch)
        arguments = ["plan", "tiny", "--budget", "40%", "--json", "--device", "cpu", "--latency-ms"]
        assert main([*arguments, "1e-5"]) == 3
        least = json.loads(capsys.readouterr().out)["minimum_latency_ms"]
        assert main([*arguments, repr(least)]) == 0
        made = Plan.from_json(capsys.readouterr().out)
        stranger.check(made.to_json())
        assert made.predicted.latency is not None
        assert made.predicted.latency.measured
        assert made.predicted.latency.source == "measured on 2026-01-01"
        assert not made.notes

    def test_http_and_the_client(self, http: TestClient, store: Store, settings: Settings) -> None:
        body = {"model": "tiny", "budget": "40%", "latency_ms": 1.0}
        assert http.post("/v1/plans", json=body).status_code == 202
        done = do_oldest_job(store, settings)
        assert done.result is not None
        answer = http.post("/v1/plans", json=body)
        assert (answer.status_code, answer.json()["id"]) == (200, done.result["plan_id"])
        assert answer.json()["predicted"]["latency"]["device"] == "h100"
        assert "a token on h100" in http.get(f"/plans/{answer.json()['id']}").text
        assert "latency" not in http.post("/v1/plans", json={"model": "tiny", "budget": "40%"}).text
        refused = http.post("/v1/plans", json=body | {"latency_ms": 1e-5}).json()
        assert refused["type"] == "/problems/budget-infeasible"
        client = Client(http=http)
        made = client.allocate("tiny", "40%", latency_ms=refused["minimum_latency_ms"], latency_device="h100")
        assert made.predicted.latency is not None
        assert made.predicted.latency.ms == refused["minimum_latency_ms"]
        assert http.post("/v1/plans", json=body | {"latency_device": "cuda:0"}).json()["kind"] == "latency device"
