"""What arguments of the command line mean: a plan by id, prefix or file; options as a request; pins; names to filter by."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from ..allocator import Plan
from ..allocator.errors import UnknownName, UsageError
from .schema import JobKind, JobStatus, PlanBody

Body = TypeVar("Body", bound=BaseModel)


def find_plan(text: str, stored: Callable[[str], Plan]) -> Plan:
    """The plan that PLAN means: a file if there is one of that name, else what `stored` has under an id or a prefix."""
    path = Path(text)
    if not path.is_file() and path.suffix != ".json":
        return stored(text)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); give a plan's id, or a file written by `bitplan plan --out`"
        ) from error


def request_body(model: str, budget: str, *, formats: str | None, calibration: Path | None, **rest: Any) -> PlanBody:
    """The request that the options describe. Raises UsageError for what the schema refuses."""
    text = None if calibration is None else str(calibration)
    return checked(PlanBody, model=model, budget=budget, formats=palette(formats), calibration=text, **rest)


def checked(body: type[Body], **options: Any) -> Body:
    """Options as a request. Raises UsageError for what the schema refuses."""
    try:
        return body(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"--{first['loc'][0]}: " if first["loc"] else ""
        raise UsageError(f"{where}{first['msg']}") from error


def palette(formats: str | None) -> tuple[str, ...] | None:
    """The formats of `--formats A,B,...`."""
    return None if formats is None else tuple(name.strip() for name in formats.split(",") if name.strip())


def read_pins(texts: list[str]) -> dict[str, str]:
    """The pins of `--pin REGEX=FORMAT`, split at the last equals sign, since a format has none. Raises UsageError."""
    pins = {}
    for text in texts:
        pattern, equals, format_name = text.rpartition("=")
        if not (pattern and equals and format_name):
            raise UsageError(f"--pin {text!r} is not REGEX=FORMAT; write for instance --pin 'embed_tokens=int8-g64'")
        pins[pattern] = format_name
    return pins


def read_days(text: str) -> float:
    """An age such as 30d or 12h, in days. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([dh])", text.strip())
    if match is None:
        raise UsageError(f"--older-than {text!r} is no age; write for instance 30d or 12h")
    return float(match[1]) / (1 if match[2] == "d" else 24)


def check_job_filters(status: str | None, kind: str | None) -> None:
    """Raises UnknownName for a status or kind that no job has."""
    for what, name, known in (("status", status, get_args(JobStatus)), ("kind", kind, get_args(JobKind))):
        if name is not None and name not in known:
            raise UnknownName(what, name, known)
