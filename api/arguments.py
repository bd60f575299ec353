"""What arguments of the command line mean: a plan by id, prefix or file; options as a request; pins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..allocator import Plan
from ..allocator.errors import UsageError
from .schema import PlanBody
from .store import Store


def find_plan(text: str, store: Store) -> Plan:
    """The plan that PLAN means: a file if there is one of that name, else an id or a unique prefix of one."""
    path = Path(text)
    if not path.is_file() and path.suffix != ".json":
        return store.plan(text)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); give a plan's id, or a file written by `bitplan plan --out`"
        ) from error


def request_body(model: str, budget: str, *, formats: str | None, calibration: Path | None, **rest: Any) -> PlanBody:
    """The request that the options describe. Raises UsageError for what the schema refuses."""
    palette = None if formats is None else tuple(name.strip() for name in formats.split(",") if name.strip())
    text = None if calibration is None else str(calibration)
    try:
        return PlanBody(model=model, budget=budget, formats=palette, calibration=text, **rest)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{first['loc'][0]}: {first['msg']}") from error


def read_pins(texts: list[str]) -> dict[str, str]:
    """The pins of `--pin REGEX=FORMAT`, split at the last equals sign, since a format has none. Raises UsageError."""
    pins = {}
    for text in texts:
        pattern, equals, format_name = text.rpartition("=")
        if not (pattern and equals and format_name):
            raise UsageError(f"--pin {text!r} is not REGEX=FORMAT; write for instance --pin 'embed_tokens=int8-g64'")
        pins[pattern] = format_name
    return pins
