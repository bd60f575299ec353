from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bitplan
import stranger
from bitplan.allocator import (
    Budget,
    Infeasible,
    Interrupted,
    ModelError,
    PlanRequest,
    ProfileRequest,
    UnknownName,
    UsageError,
    allocate,
)
from bitplan.allocator import allocate as public
from bitplan.allocator import data as data_module
from bitplan.allocator import models as loading
from bitplan.allocator.allocate import allocate_request
from bitplan.sensitivity.metrics import kl_fisher
from shelf import FORMATS, TOKENS, Shelf


@pytest.fixture
def measured_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any rendering, estimate or look at the data fails the test."""

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr(data_module, "load_calibration", refuse)
    monkeypatch.setattr(kl_fisher, "estimate", refuse)


@pytest.fixture
def loaded_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load", refuse)


def test_every_argument_arrives(shelf: Shelf, tmp_path: Path) -> None:
    plan = allocate(
        str(shelf.model("llama")),
        "75%",
        target="vllm",
        metric="output_error",
        solver="hull",
        formats=iter(["int4-g64", "int8-row"]),
        pins={r".*\.o_proj": "int8-row", r".*layers\.1\.mlp\.down_proj": "native"},
        calibration=str(shelf.text),
        tokens=128,
        seed=3,
        rounding="nearest",
        home=tmp_path,
    )
    provenance = plan.provenance
    assert (plan.target, plan.budget.text) == ("vllm", "75%")
    assert (provenance.metric, provenance.solver, provenance.seed, provenance.rounding) == ("output_error", "hull", 3, "nearest")
    expected = {"tokens": 128, "calibration": str(shelf.text), "formats": ["int4-g64", "int8-row"]}
    assert provenance.settings == expected
    assert plan.pins == {
        "model.layers.0.self_attn.o_proj": "int8-row",
        "model.layers.1.self_attn.o_proj": "int8-row",
        "model.layers.1.mlp.down_proj": "bf16",
    }
    assert plan.certificate.formats == ["int4-g64", "int8-row", "bf16"]
    assert {plan.assignment[name] for name in plan.pins} == {"int8-row", "bf16"}
    assert (tmp_path / "profiles" / f"{provenance.profile_id}.json").exists()
    stranger.check(plan.to_json())


def test_a_budget_may_be_a_number_of_bytes_or_a_value(shelf: Shelf) -> None:
    request = shelf.profile_request("llama")
    common: dict[str, Any] = {"formats": FORMATS, "tokens": TOKENS, "calibration": request.calibration, "home": shelf.home}
    plans = [allocate(request.model, budget, **common) for budget in (100_000, "100kB", Budget.parse("100 KB"))]
    assert len({plan.id for plan in plans}) == 1
    assert [plan.budget.text for plan in plans] == ["100000", "100kB", "100 KB"]


def test_the_shipped_text_and_the_default_palette(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing said but model and budget, and BITPLAN_HOME from the environment."""
    monkeypatch.setenv("BITPLAN_HOME", str(tmp_path))
    plan = bitplan.allocate(str(shelf.model("llama")), "3.5bpw", tokens=256)
    assert plan.certificate.formats == [*(f"int{bits}-g64-asym" for bits in (2, 3, 4, 5, 6, 8)), "bf16"]
    assert plan.predicted.stored_bits_per_weight <= 3.5
    assert plan.predicted.loss > 0
    assert list((tmp_path / "profiles").iterdir())


def test_the_public_names_are_the_same_function() -> None:
    assert bitplan.allocate is public is allocate


def test_infeasible_budgets_are_refused_before_anything_is_measured(shelf: Shelf, tmp_path: Path, measured_nothing: None) -> None:
    with pytest.raises(Infeasible) as caught:
        allocate(str(shelf.model("llama")), "1.9bpw", home=tmp_path)
    smallest = caught.value.minimum_bytes
    assert caught.value.maximum_bytes == 223_360
    for budget in (smallest - 1, 1):
        with pytest.raises(Infeasible):
            allocate(str(shelf.model("llama")), budget, home=tmp_path)
    with pytest.raises(AssertionError, match="something was measured"):
        allocate(str(shelf.model("llama")), smallest, home=tmp_path)


def test_a_budget_above_the_model_measures_nothing(shelf: Shelf, tmp_path: Path, measured_nothing: None) -> None:
    for kind in ("llama", "resnet", "dinov2"):
        plan = allocate(str(shelf.model(kind)), "150%", home=tmp_path)
        assert set(plan.assignment.values()) <= {"bf16", "fp32"}
        assert "above the model's own size" in plan.notes[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"budget": "12 parsecs"}, UsageError),
        ({"metric": "nose"}, UnknownName),
        ({"target": "abacus"}, UnknownName),
        ({"solver": "luck"}, UnknownName),
        ({"formats": ["int99"]}, UnknownName),
        ({"formats": []}, UsageError),
        ({"pins": {"(": "int4-g64"}}, UsageError),
        ({"pins": {".*": "int99"}}, UnknownName),
        ({"calibration": "/no/such/file"}, UsageError),
        ({"tokens": 1}, UsageError),
        ({"rounding": "up"}, UnknownName),
        ({"model": "no-such-model"}, ModelError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_misuse_is_refused_before_a_model_is_loaded(
    changes: dict[str, Any], error: type[Exception], shelf: Shelf, tmp_path: Path, loaded_nothing: None
) -> None:
    arguments: dict[str, Any] = {"model": str(shelf.model("llama")), "budget": "40%", "home": tmp_path} | changes
    with pytest.raises(error):
        allocate(**arguments)


def test_pins_that_match_nothing_are_refused_before_anything_is_measured(
    shelf: Shelf, tmp_path: Path, measured_nothing: None
) -> None:
    with pytest.raises(UsageError, match="pin 'layers' matches no unit"):
        allocate(str(shelf.model("llama")), "40%", pins={"layers": "int4-g64"}, home=tmp_path)


def test_progress_runs_through_the_stages_and_each_to_its_end(shelf: Shelf, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    request = shelf.request("bert")
    allocate_request(request, home=tmp_path, progress=lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["load", "render: second moments", "render", "estimate", "solve"]
    for stage in stages:
        steps = [(done, total) for name, done, total in told if name == stage]
        assert all(0 <= done <= total for done, total in steps)
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]
    again: list[str] = []
    allocate_request(request, home=tmp_path, progress=lambda stage, done, total: again.append(stage))
    assert set(again) == {"solve"}


def test_progress_may_stop_the_work(shelf: Shelf, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "solve":
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        allocate_request(shelf.request("residual"), home=tmp_path, progress=stop)
    assert len(list((tmp_path / "profiles").iterdir())) == 1  # what was measured is kept


def test_the_same_request_in_another_home_is_the_same_plan(shelf: Shelf, tmp_path: Path) -> None:
    """Measured anew from the same files: the same numbers to the last bit, so the same plan."""
    plan = allocate_request(shelf.request("mixtral"), home=tmp_path)
    assert (plan.id, plan.certificate) == (shelf.plan("mixtral").id, shelf.plan("mixtral").certificate)


def test_a_request_in_one_value_is_the_same(shelf: Shelf) -> None:
    profile = shelf.profile_request("residual")
    request = PlanRequest(ProfileRequest(profile.model, "kl_fisher", FORMATS, profile.calibration, TOKENS), "22%")
    assert allocate_request(request, home=shelf.home).id == shelf.plan("residual").id
