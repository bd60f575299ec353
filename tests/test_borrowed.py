"""A plan by the profile of a smaller sibling: labelled, kept, and made without measuring the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitplan.allocator import NotFound, PlanRequest, ProfileRequest, UsageError, known_profile, profile_model
from bitplan.allocator import inspect_model as inspect
from bitplan.allocator.solve import plan_from_profile
from shelf import Shelf

FORMATS = ("int2-g32-asym", "int4-g32-asym", "int8-g32-asym")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def sibling(shelf: Shelf, home: Path) -> str:
    """The profile of a small model."""
    request = ProfileRequest(str(shelf.model("llama")), "weight_error", FORMATS, rounding="nearest")
    return profile_model(request, home=home).id


def test_the_losses_are_the_siblings_and_say_so(shelf: Shelf, home: Path, sibling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ProfileRequest(str(shelf.model("untied")), formats=FORMATS, sibling=sibling[:12])
    inventory = inspect(request.model, home=home)
    from bitplan.allocator import models as loading

    monkeypatch.setattr(loading, "load", None)  # nothing of the model is loaded, let alone measured
    report = profile_model(request, home=home)
    assert report.stderr is None
    assert report.settings["sibling"] == sibling
    assert any("no data was used" in note for note in report.notes)
    assert known_profile(request, home) is not None
    plan = plan_from_profile(inventory, report, PlanRequest(request, "40%"))
    assert any("no data was used" in note for note in plan.notes)
    assert plan.predicted.stderr is None


def test_a_twin_has_the_same_losses(shelf: Shelf, home: Path, sibling: str) -> None:
    request = ProfileRequest(str(shelf.model("llama")), formats=FORMATS, sibling=sibling)
    own = profile_model(replace(request, metric="weight_error", rounding="nearest", sibling=None), home=home)
    assert np.allclose(profile_model(request, home=home).loss, own.loss, equal_nan=True, rtol=1e-12)


@pytest.mark.parametrize("beginning", ["0123", "../x", ""])
def test_what_is_not_stored_is_named(shelf: Shelf, home: Path, sibling: str, beginning: str) -> None:
    with pytest.raises(NotFound, match="bitplan profile MODEL"):
        profile_model(ProfileRequest(str(shelf.model("untied")), formats=FORMATS, sibling=beginning), home=home)


def test_a_model_of_another_kind_is_no_sibling(shelf: Shelf, home: Path, sibling: str) -> None:
    with pytest.raises(UsageError, match="sibling"):
        profile_model(ProfileRequest(str(shelf.model("dinov2")), formats=FORMATS, sibling=sibling), home=home)


def test_a_format_beyond_what_the_sibling_knows_is_refused(shelf: Shelf, home: Path) -> None:
    few = ProfileRequest(
        str(shelf.model("llama")), "weight_error", ("int4-g32-asym", "int8-g32-asym"), rounding="nearest", seed=3
    )
    known = profile_model(few, home=home).id
    with pytest.raises(UsageError, match="int2-g32-asym"):
        profile_model(ProfileRequest(str(shelf.model("untied")), formats=FORMATS, sibling=known), home=home)


def test_borrowing_leaves_nothing_to_stop() -> None:
    with pytest.raises(UsageError, match="--sibling measures nothing, so --until-stable has nothing to stop"):
        ProfileRequest("tiny", until_stable="40%", sibling="abc").check()
