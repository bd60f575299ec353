from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from bitplan.allocator import (
    BitplanError,
    Interrupted,
    ProfileRequest,
    SensitivityReport,
    UsageError,
    inspect_model,
    known_inventory,
    known_profile,
    profile_model,
)
from bitplan.allocator.device import choose_device
from bitplan.allocator.request import DEFAULT_FORMATS
from bitplan.sensitivity import METRICS
from shelf import Shelf

FORMATS = ("int3-g64-asym", "int4-g64")
BATCHES = 5  # of one window each


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(scope="module")
def request_(shelf: Shelf) -> ProfileRequest:
    """Small, but of the default metric."""
    return ProfileRequest(
        str(shelf.model("llama")), formats=FORMATS, tokens=BATCHES * models.LONGEST, calibration=str(shelf.text)
    )


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the models loaded, the batches estimated, and the matrices rounded."""
    from bitplan.allocator import models as loading
    from bitplan.sensitivity import render
    from bitplan.sensitivity.metrics import kl_fisher

    count: Counter[str] = Counter()

    def watch(module: Any, name: str, what: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            count[what] += 1
            return function(*arguments, **more)

        monkeypatch.setattr(module, name, counted)

    watch(loading, "load", "loads")
    watch(kl_fisher, "token_slopes", "batches")
    watch(render, "_gptq_by_group", "roundings")
    return count


def same(one: SensitivityReport, other: SensitivityReport) -> None:
    """Equal to the last bit in all but the time it took."""
    assert one.to_json() | {"seconds": 0} == other.to_json() | {"seconds": 0}


class Stop:
    """A Progress that stops the work when it is told of `stage` for the `at`-th time."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.left = stage, at

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.left -= stage == self.stage
        if self.left < 0:
            raise Interrupted


@pytest.fixture(scope="module")
def whole_home(request_: ProfileRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which `request_` was measured in one go."""
    home = tmp_path_factory.mktemp("whole")
    profile_model(request_, home=home)
    return home


@pytest.fixture(scope="module")
def whole(request_: ProfileRequest, whole_home: Path) -> SensitivityReport:
    report = known_profile(request_, whole_home)
    assert report is not None
    return report


@pytest.fixture
def measured(home: Path, whole_home: Path) -> Path:
    """A copy of that home."""
    return shutil.copytree(whole_home, home)


def test_a_report_says_what_was_measured(whole: SensitivityReport, request_: ProfileRequest, shelf: Shelf) -> None:
    found = models.network("llama").inventory
    assert whole.units == tuple(unit.name for unit in found.units)
    assert whole.formats == (*FORMATS, "bf16")
    assert whole.id == request_.profile_id(replace(found, model_id=request_.model))
    assert (whole.metric, whole.quantity, whole.seed) == ("kl_fisher", "nats per token", 0)
    settings = {"tokens": request_.tokens, "calibration": request_.calibration, "rounding": "gptq"}
    assert whole.settings == settings | {"device": str(choose_device("auto"))}
    assert whole.inventory_fingerprint == found.fingerprint
    assert whole.batches == BATCHES
    assert whole.stderr is not None
    assert np.all(whole.loss[:, -1] == 0)
    assert np.all(whole.loss[:, :-1] > 0)


def test_what_is_known_is_not_measured_again(
    request_: ProfileRequest, home: Path, done: Counter[str], whole: SensitivityReport
) -> None:
    assert known_inventory(request_.model, home) is None
    assert known_profile(request_, home) is None
    same(profile_model(request_, home=home), whole)
    assert done.pop("loads") == 1
    assert done.pop("batches") == BATCHES
    assert done.pop("roundings") > 0
    same(profile_model(request_, home=home), whole)
    known = known_profile(request_, home)
    assert known is not None
    same(known, whole)
    assert known_inventory(request_.model, home) == inspect_model(request_.model, home=home)
    assert not done


def test_an_inspected_model_is_not_loaded_to_be_inspected_again(shelf: Shelf, home: Path, done: Counter[str]) -> None:
    model = str(shelf.model("bert"))
    found = inspect_model(model, home=home)
    assert inspect_model(model, home=home) == known_inventory(model, home) == found
    assert done == {"loads": 1}


def test_a_wider_profile_serves_a_request_for_fewer_formats(
    request_: ProfileRequest, measured: Path, done: Counter[str], whole: SensitivityReport
) -> None:
    same(profile_model(replace(request_, formats=FORMATS[:1]), home=measured), whole)
    assert known_profile(replace(request_, formats=("int4-g64", "bf16")), measured) is not None
    assert not done


@pytest.mark.parametrize(
    "other",
    [
        {"formats": (*FORMATS, "int8-g64")},
        {"tokens": 256},
        {"seed": 1},
        {"metric": "output_error"},
        {"rounding": "nearest"},
        {"calibration": __file__},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_request_is_not_served(other: dict[str, Any], request_: ProfileRequest, whole_home: Path) -> None:
    assert known_profile(request_, whole_home) is not None
    assert known_profile(replace(request_, **other), whole_home) is None


def test_renderings_serve_every_metric(
    request_: ProfileRequest, measured: Path, done: Counter[str], whole: SensitivityReport
) -> None:
    other = profile_model(replace(request_, metric="weight_error"), home=measured)
    assert done == {"loads": 1}
    assert other.render_fingerprint == whole.render_fingerprint
    assert other.id != whole.id


@pytest.mark.parametrize(
    ("stage", "at"), [("render: second moments", 3), ("render", 0), ("render", 5), ("estimate", 0), ("estimate", 3)]
)
def test_an_interrupted_profile_goes_on_where_it_was(
    stage: str, at: int, request_: ProfileRequest, home: Path, done: Counter[str], whole: SensitivityReport
) -> None:
    """What was finished is not done again, and the numbers are those of a profile in one go."""
    with pytest.raises(Interrupted):
        profile_model(request_, home=home, progress=Stop(stage, at))
    assert known_profile(request_, home) is None
    before = done["batches"]
    assert before == (at if stage == "estimate" else 0)
    assert (done["roundings"] > 0) == (stage == "estimate" or (stage, at) == ("render", 5))
    kept = {path: path.stat().st_mtime_ns for path in (home / "renderings").rglob("*") if path.is_file()}
    done.clear()
    same(profile_model(request_, home=home), whole)
    assert done["batches"] == BATCHES - before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    made = [path for path in (home / "renderings").rglob("*") if path.is_file()]
    assert len(made) == len(FORMATS) * len(whole.units)
    assert not list((home / "partial").iterdir())


def test_a_profile_survives_being_killed(
    request_: ProfileRequest, home: Path, done: Counter[str], whole: SensitivityReport
) -> None:
    """kill -9 in another process, after three of five batches: no handler runs, nothing is flushed."""
    code = """
import os, signal, sys
from bitplan.allocator import ProfileRequest, profile_model
def progress(stage, done, total):
    if (stage, done) == ("estimate", 3):
        os.kill(os.getpid(), signal.SIGKILL)
model, home, calibration, tokens, *formats = sys.argv[1:]
profile_model(ProfileRequest(model, "kl_fisher", tuple(formats), calibration, int(tokens)), home=home, progress=progress)
"""
    command = [sys.executable, "-c", code, request_.model, str(home), str(request_.calibration), str(request_.tokens), *FORMATS]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    same(profile_model(request_, home=home), whole)
    assert done == {"loads": 1, "batches": BATCHES - 3}


class TestChangedModels:
    @pytest.fixture
    def model(self, shelf: Shelf, tmp_path: Path) -> Path:
        return shutil.copytree(shelf.model("llama"), tmp_path / "model")

    def test_new_weights_are_measured_anew(
        self, model: Path, measured: Path, request_: ProfileRequest, whole: SensitivityReport
    ) -> None:
        request = replace(request_, model=str(model))
        same(profile_model(request, home=measured), whole)
        models.save("llama", model, seed=1)
        assert known_inventory(request.model, measured) is None
        assert known_profile(request, measured) is None
        new = profile_model(request, home=measured)
        assert new.inventory_fingerprint != whole.inventory_fingerprint
        assert new.id != whole.id
        assert not np.array_equal(new.loss, whole.loss)

    def test_the_same_weights_in_a_touched_file_are_found_by_content(
        self, model: Path, measured: Path, request_: ProfileRequest, whole: SensitivityReport, done: Counter[str]
    ) -> None:
        request = replace(request_, model=str(model))
        inspect_model(request.model, home=measured)
        done.clear()
        os.utime(model / "model.safetensors", ns=(0, 0))
        assert known_inventory(request.model, measured) is None
        same(profile_model(request, home=measured), whole)
        assert done == {"loads": 1}

    def test_a_copy_elsewhere_is_the_same_model_under_its_own_name(
        self, model: Path, measured: Path, request_: ProfileRequest, whole: SensitivityReport, done: Counter[str]
    ) -> None:
        same(profile_model(replace(request_, model=str(model)), home=measured), whole)
        assert done == {"loads": 1}
        found = known_inventory(str(model), measured)
        assert found is not None
        assert found.model_id == str(model)

    def test_a_damaged_store_is_measured_again(
        self, measured: Path, request_: ProfileRequest, whole: SensitivityReport, done: Counter[str]
    ) -> None:
        for path in (*(measured / "profiles").iterdir(), *(measured / "inventories").iterdir()):
            path.write_bytes(path.read_bytes()[:100])
        assert known_profile(request_, measured) is None
        same(profile_model(request_, home=measured), whole)
        assert done == {"loads": 1, "batches": BATCHES}


@pytest.mark.parametrize("kind", ["OSError", "SafetensorError"])
def test_a_full_disk_stops_the_rendering_with_a_sentence(
    kind: str, request_: ProfileRequest, home: Path, whole: SensitivityReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from bitplan.sensitivity import render

    room = 5

    def fill(tensors: Any, path: Path) -> None:
        nonlocal room
        room -= 1
        save_file(tensors, path)
        if room < 0:
            path.write_bytes(path.read_bytes()[:50])
            raise OSError(errno.ENOSPC, "No space left on device") if kind == "OSError" else SafetensorError("No space left")

    with monkeypatch.context() as patched:
        patched.setattr(render, "save_file", fill)
        with pytest.raises(BitplanError, match=r"could not be written \(No space left.*; free some space"):
            profile_model(request_, home=home)
    files = [path for path in home.rglob("*") if path.is_file() and "renderings" in path.parts]
    assert len(files) == 5
    same(profile_model(request_, home=home), whole)


def test_metrics_without_data_need_none(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitplan.allocator import data

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("data was asked for")

    monkeypatch.setattr(data, "load_calibration", refuse)
    assert not METRICS["weight_error"].needs_data
    request = ProfileRequest(str(shelf.model("residual")), "weight_error", FORMATS, rounding="nearest")
    report = profile_model(request, home=home)
    assert report.stderr is None
    assert report.data_fingerprint == ""


def test_images_are_asked_for_where_they_are_needed(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    request = ProfileRequest(str(shelf.model("residual")), formats=FORMATS)
    with pytest.raises(UsageError, match="takes images; give a folder of images with --calibration, or use"):
        profile_model(request, home=home)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "text.txt").write_text("words " * 1000)
    with pytest.raises(UsageError, match=r"holds no image; give a folder of .jpg or .png files"):
        profile_model(replace(request, calibration=str(tmp_path / "text")), home=home)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("only a few words", "has 14 tokens|has .* tokens; at least .* are needed, give more text"),
        (" \n" * 5000, "holds no text|is empty"),
    ],
    ids=["short", "blank"],
)
def test_text_that_is_too_little(text: str, sentence: str, request_: ProfileRequest, home: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        profile_model(replace(request_, calibration=str(tmp_path / "text.txt")), home=home)


def test_a_tokenizer_that_is_missing(shelf: Shelf, home: Path, tmp_path: Path, request_: ProfileRequest) -> None:
    model = shutil.copytree(shelf.model("llama"), tmp_path / "model")
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"the tokenizer of model .* cannot be read .*; add its files"):
        profile_model(replace(request_, model=str(model)), home=home)


def test_the_default_palette_covers_two_to_eight_bits() -> None:
    assert [int(name[3]) for name in DEFAULT_FORMATS] == [2, 3, 4, 5, 6, 8]


def test_a_metric_that_is_not_for_the_model_is_refused_before_anything_is_rounded(
    request_: ProfileRequest, tmp_path: Path, done: Counter[str]
) -> None:
    with pytest.raises(UsageError, match=r"expert_frequency is for mixture-of-experts models and this is a causal-lm one"):
        profile_model(replace(request_, metric="expert_frequency"), home=tmp_path / "new")
    assert done["roundings"] == 0
