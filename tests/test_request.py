from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

import fakes
from bitplan.allocator import METRICS, SOLVERS, TARGETS, PlanRequest, ProfileRequest, UnknownName, UsageError
from bitplan.allocator.request import DEFAULT_FORMATS, calibration_digest
from bitplan.kernels.formats import FORMATS

INVENTORY = fakes.inventory()
REQUEST = ProfileRequest("tiny")


def identity(**changes: Any) -> str:
    return dataclasses.replace(REQUEST, **changes).profile_id(INVENTORY)


def test_the_same_request_has_the_same_id() -> None:
    assert ProfileRequest("tiny").profile_id(fakes.inventory()) == identity()
    assert len(identity()) == 64


def test_what_does_not_change_the_numbers_does_not_change_the_id() -> None:
    """The palette in any order and with what is in it anyway; the name under which the same weights were found; how much of
    the model was in memory."""
    assert identity(formats=DEFAULT_FORMATS) == identity()
    assert identity(formats=(*reversed(DEFAULT_FORMATS), "int4-g64-asym", "bf16")) == identity()
    assert identity(model="another name") == identity()
    assert identity(stream=True) == identity()
    assert identity(stream=True, metric="output_error") == identity(metric="output_error") != identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "weight_error"},
        {"formats": (*DEFAULT_FORMATS, "int4-g128")},
        {"formats": DEFAULT_FORMATS[1:]},
        {"tokens": 4097},
        {"seed": 1},
        {"rounding": "nearest"},
        {"calibration": __file__},
        {"until_stable": "30%"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_numbers_changes_the_id(changes: dict[str, Any]) -> None:
    assert identity(**changes) != identity()


def test_other_weights_have_another_id() -> None:
    other = dataclasses.replace(INVENTORY, fingerprint="f" * 64)
    assert REQUEST.profile_id(other) != identity()


def test_calibration_is_named_by_its_content(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    before = calibration_digest(str(text))
    os.utime(text, (0, 0))
    assert calibration_digest(str(text)) == before
    copy = tmp_path / "folder" / "text.txt"
    copy.parent.mkdir()
    copy.write_text("some words")
    assert calibration_digest(str(copy)) == calibration_digest(str(copy.parent)) == before
    text.write_text("some word")
    assert calibration_digest(str(text)) != before
    (copy.parent / "more.txt").write_text("more")
    assert calibration_digest(str(copy.parent)) != before
    assert calibration_digest(None) not in (before, calibration_digest(str(text)))


def test_the_palette_is_in_order_of_width_with_the_own_dtype_at_the_end() -> None:
    assert REQUEST.palette(INVENTORY) == (*DEFAULT_FORMATS, "bf16")
    asked = ProfileRequest("tiny", formats=("int8-g32", "int2-g64", "int4-g64-asym", "int4-g64", "int4-g128", "int4-row", "fp32"))
    expected = ("int2-g64", "int4-row", "int4-g128", "int4-g64", "int4-g64-asym", "int8-g32", "bf16", "fp32")
    assert asked.palette(INVENTORY) == expected


def test_the_palette_holds_every_dtype_of_a_mixed_model() -> None:
    units = (dataclasses.replace(INVENTORY.units[0], native="fp32"), *INVENTORY.units[1:])
    assert REQUEST.palette(dataclasses.replace(INVENTORY, units=units)) == (*DEFAULT_FORMATS, "bf16", "fp32")


@pytest.mark.parametrize(
    ("kind", "known", "request_of"),
    [
        ("metric", METRICS, lambda name: PlanRequest(ProfileRequest("m", metric=name), "1GB")),
        ("format", FORMATS, lambda name: PlanRequest(ProfileRequest("m", formats=("int4-g64", name)), "1GB")),
        ("rounding", ("gptq", "nearest"), lambda name: PlanRequest(ProfileRequest("m", rounding=name), "1GB")),
        ("target", TARGETS, lambda name: PlanRequest(REQUEST, "1GB", target=name)),
        ("solver", SOLVERS, lambda name: PlanRequest(REQUEST, "1GB", solver=name)),
        ("format", FORMATS, lambda name: PlanRequest(REQUEST, "1GB", pins=((".*", name),))),
    ],
    ids=["metric", "format", "rounding", "target", "solver", "pin"],
)
def test_an_unknown_name_lists_the_known_ones(kind: str, known: Any, request_of: Any) -> None:
    for name in known:
        request_of(name).check()
    with pytest.raises(UnknownName) as caught:
        request_of("abacus").check()
    assert (caught.value.kind, caught.value.name, set(caught.value.known)) == (kind, "abacus", set(known))


def test_a_near_miss_is_pointed_out() -> None:
    with pytest.raises(UnknownName, match="did you mean 'int4-g64-asym'"):
        ProfileRequest("m", formats=("int4-g64_asym",)).check()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (ProfileRequest("m", formats=()), "list of formats is empty; name at least one"),
        (ProfileRequest("m", tokens=63), "63 calibration tokens are too few; ask for at least 64"),
        (ProfileRequest("m", calibration="/no/such/file"), "calibration source /no/such/file does not exist; give a text file"),
        (ProfileRequest("m", until_stable="12 parsecs"), "budget '12 parsecs' has an unknown unit 'parsecs'; write bytes"),
        (
            ProfileRequest("m", until_stable="30%", stream=True),
            r"--until-stable goes batch by batch and --stream block by block; leave one of them out",
        ),
        (
            ProfileRequest("m", metric="divergence", until_stable="30%"),
            r"metric 'divergence' does not add up batch by batch; leave --until-stable out, or take kl_fisher",
        ),
        (PlanRequest(ProfileRequest("m", until_stable="-1%"), "1GB"), "budget '-1%' cannot be read"),
        (PlanRequest(REQUEST, "12 parsecs"), "12 parsecs"),
        (
            PlanRequest(REQUEST, "1GB", pins=(("layers.(", "int4-g64"),)),
            r"pin 'layers.\(' is not a regular expression .*; mend it",
        ),
    ],
)
def test_misuse_is_refused_at_the_door(request_: ProfileRequest | PlanRequest, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        request_.check()


@pytest.mark.parametrize("metric", METRICS)
def test_only_metrics_that_stream_can_be_streamed(metric: str) -> None:
    """The others are told which can; one sentence, before anything is loaded."""
    request = ProfileRequest("m", metric=metric, stream=True)
    if METRICS[metric].streams:
        request.check()
        return
    with pytest.raises(UsageError) as caught:
        PlanRequest(request, "1GB").check()
    sentence, _, able = str(caught.value).partition("one of: ")
    assert sentence == f"metric {metric!r} needs the whole model in memory; leave --stream out, or take "
    assert able.split(", ") == [name for name, known in METRICS.items() if known.streams]


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_an_empty_calibration_file_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "empty.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=f"calibration source {file} is empty; give a file with text in it"):
        ProfileRequest("m", calibration=str(file)).check()


def test_pins_widen_the_profile_by_what_it_lacks() -> None:
    pins = (("a", "int4-g128"), ("b", "native"), ("c", "int4-g64-asym"), ("d", "int4-g128"), ("e", "fp16"))
    assert PlanRequest(REQUEST, "1GB", pins=pins).measured.formats == (*DEFAULT_FORMATS, "int4-g128", "fp16")
    assert PlanRequest(REQUEST, "1GB", pins=pins[1:3]).measured == REQUEST
    narrow = ProfileRequest("m", formats=("int8-g64",))
    assert PlanRequest(narrow, "1GB", pins=pins[:1]).measured.formats == ("int8-g64", "int4-g128")
