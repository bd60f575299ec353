"""Single requests: what is sent, what a reply means, which error a refusal is."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from ...allocator import Plan
from ...allocator.errors import BitplanError, UsageError
from ..problems import error_of
from ..schema import JobView, KeyView, ListView, SweepView
from .talk import Ask, Flow, Give, Open, Opened, Talk

Model = TypeVar("Model", bound=BaseModel)


def ask(
    method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None, *, patient: bool = False
) -> Talk[httpx2.Response]:
    """One request. Problem details are raised as the errors that they describe."""
    headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
    response: httpx2.Response = yield Ask(method, path, body, _given(query), headers, patient)
    _check(response)
    return response


def read(path: str, query: Mapping[str, Any] | None = None, *, patient: bool = False) -> Talk[Any]:
    """The JSON document at `path`."""
    return document((yield from ask("GET", path, query=query, patient=patient)))


def open_body(path: str, headers: Mapping[str, str]) -> Talk[Opened]:
    """The reply to a GET, to be read piece by piece."""
    opened: Opened = yield Open("GET", path, headers=headers, patient=True)
    _check(opened.response)
    return opened


def page(item: type[Model], path: str, query: Mapping[str, Any]) -> Talk[ListView[Model]]:
    """One page of a list."""
    return shaped(ListView[item], (yield from read(path, query)))  # type: ignore[valid-type]


def all_pages(first: Callable[[str | None], Talk[ListView[Model]]]) -> Flow[Model]:
    """Give the items of every page, asking for the next page once the one before has been used up."""
    cursor = None
    while True:
        found = yield from first(cursor)
        for item in found.items:
            yield Give(item)
        cursor = found.next_cursor
        if cursor is None:
            return


def document(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise BitplanError(f"{response.url} answered with no JSON; is that the address of a bitplan service?") from error


def shaped(model: type[Model], found: Any) -> Model:
    """What a service sent, as a value. Raises BitplanError when it is of another shape."""
    try:
        return model.model_validate(found)
    except ValidationError as error:
        what = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        raise BitplanError(f"the service answers in a shape that this client does not know ({what}); use one version") from error


def body(model: type[Model], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a request. Raises UsageError for what the schema refuses."""
    try:
        return model.model_validate(fields).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def id_of(thing: Plan | JobView | SweepView | KeyView | str) -> str:
    """The id of a thing, as it stands in a path."""
    return quote(thing if isinstance(thing, str) else thing.id, safe="")


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _check(response: httpx2.Response) -> None:
    if response.is_error:
        try:
            problem = response.json()
        except ValueError:
            problem = None
        raise error_of(problem if isinstance(problem, dict) else {"title": f"status {response.status_code} from {response.url}"})
