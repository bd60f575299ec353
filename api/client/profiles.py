"""Models and their profiles: inspected, measured, read at any budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from ...allocator import Plan
from ..schema import ListView, ProfileBody, ProfileSummary
from .asking import all_pages, ask, body, document, page, read, shaped
from .jobs import Watch, result, taken_up
from .talk import Flow, Talk


class Measuring(TypedDict, total=False):
    """Options of a profile, named as in the API; `calibration` and `device` are the service's files and devices."""

    metric: str
    formats: Sequence[str] | None
    calibration: str | None
    tokens: int
    seed: int
    rounding: str
    until_stable: str | None
    stream: bool
    sibling: str | None
    device: str


def inspect(model: str, *, stream: bool = False, watch: Watch | None = None) -> Talk[dict[str, Any]]:
    """What is in a model, as JSON: units, shapes, what no plan touches."""
    asked = {"model": model, "stream": stream or None}
    reply = yield from ask("GET", "/v1/inventory", query=asked)
    if reply.status_code == 202:
        yield from result(taken_up(reply), watch)
        reply = yield from ask("GET", "/v1/inventory", query=asked, patient=True)
    return _object(document(reply))


def profile(model: str, *, watch: Watch | None = None, **options: Unpack[Measuring]) -> Talk[dict[str, Any]]:
    """The model's sensitivity report as JSON, measured if it never was."""
    reply = yield from ask("POST", "/v1/profiles", body(ProfileBody, {"model": model, **options}))
    if reply.status_code != 202:
        return _object(document(reply))
    made = yield from result(taken_up(reply), watch)
    return _object((yield from read(f"/v1/profiles/{made['profile_id']}", patient=True)))


def profiles(*, model: str | None = None, cursor: str | None = None, limit: int = 50) -> Talk[ListView[ProfileSummary]]:
    """One page of stored profiles, newest first."""
    return page(ProfileSummary, "/v1/profiles", {"model": model, "cursor": cursor, "limit": limit})


def all_profiles(*, model: str | None = None) -> Flow[ProfileSummary]:
    """Every stored profile, newest first; pages are fetched as they are needed."""
    return all_pages(lambda cursor: profiles(model=model, cursor=cursor, limit=200))


def frontier(profile_id: str, *, target: str = "native") -> Talk[list[dict[str, float]]]:
    """The best loss for every number of bytes, from a stored profile."""
    points: list[dict[str, float]] = (yield from read(f"/v1/profiles/{profile_id}/frontier", {"target": target}))["points"]
    return points


def preview(profile_id: str, budget: str, *, target: str = "native", solver: str = "best") -> Talk[Plan]:
    """The plan that `allocate` would make from a stored profile; it is not stored."""
    asked = {"budget": budget, "target": target, "solver": solver}
    return shaped(Plan, (yield from read(f"/v1/profiles/{profile_id}/plan", asked)))


def _object(found: dict[str, Any]) -> dict[str, Any]:
    return found
