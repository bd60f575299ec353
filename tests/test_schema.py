"""Bodies: what is refused at the door, and what they ask of the allocator."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bitplan.allocator import PlanRequest, ProfileRequest
from bitplan.api.schema import JobView, PlanBody, ProfileBody


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"buget": "1"}, "buget"),
        ({"model": ""}, "model"),
        ({"budget": ""}, "budget"),
        ({"budget": 5}, "budget"),
        ({"tokens": 0}, "tokens"),
        ({"seed": -1}, "seed"),
        ({"pins": ["a"]}, "pins"),
        ({"verify": "perhaps"}, "verify"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PlanBody.model_validate({"model": "m", "budget": "1MiB"} | change)
    assert [error["loc"][0] for error in caught.value.errors()] == [place]


def test_a_body_becomes_the_request_it_describes() -> None:
    body = PlanBody(model="m", budget="1MiB", target="vllm", formats=("int4-g64",), pins={"head": "bf16"}, seed=3, tokens=128)
    profile = ProfileRequest("m", "kl_fisher", ("int4-g64",), None, 128, 3)
    assert body.plan_request() == PlanRequest(profile, "1MiB", "vllm", "best", (("head", "bf16"),))
    assert body.profile() == ProfileBody(model="m", formats=("int4-g64",), seed=3, tokens=128)
    assert body.profile().profile_request() == profile


def test_streaming_and_stopping_reach_the_request() -> None:
    body = PlanBody(model="m", budget="30%", until_stable="40%", stream=True)
    profile = ProfileRequest("m", until_stable="40%", stream=True)
    assert body.plan_request() == PlanRequest(profile, "30%")
    assert body.profile().profile_request() == profile
    assert PlanBody.model_validate_json(body.model_dump_json()) == body


def test_defaults_are_the_allocators() -> None:
    body = PlanBody(model="m", budget="1MiB")
    assert body.plan_request() == PlanRequest(ProfileRequest("m"), "1MiB")


@pytest.mark.parametrize(
    ("status", "finished"),
    [("queued", False), ("running", False), ("canceling", False), ("succeeded", True), ("failed", True), ("canceled", True)],
)
def test_a_job_is_finished_in_three_states(status: str, finished: bool) -> None:
    nothing = dict.fromkeys(("started_at", "finished_at", "progress", "result", "error"))
    known = {"id": "j", "kind": "plan", "created_at": "", "attempt": 0, "version": 1, "input": {}, "links": {}}
    assert JobView.model_validate({**nothing, **known, "status": status}).finished is finished
