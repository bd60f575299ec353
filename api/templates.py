"""The templates of the report, the frontier's page and the dashboard, in one Jinja environment.

Everything is escaped unless a template says otherwise, and a name that nobody gave is an error, not an empty place.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from . import wording


def render(template: str, **context: Any) -> str:
    """The template filled in; templates lie in `dashboard/templates`."""
    return _environment().get_template(template).render(**context)


def static_folder() -> Traversable:
    """Style sheets, scripts and vendored files."""
    return resources.files(__package__) / "dashboard" / "static"


@cache
def svg_style() -> str:
    """The light half of the style sheet's rules for figures, variables filled in, for a figure in a file of its own."""
    variables = dict(re.findall(r"--([\w-]+): (#\w+)", _style().partition("@media")[0]))
    rules = [rule for line in _style().splitlines() for rule in re.findall(r"(?:svg)[^{}]*{[^{}]*}", line)]
    figures = "\n".join(rule.removeprefix("svg ") for rule in rules if not rule.startswith("svg {"))
    return re.sub(r"var\(--([\w-]+)\)", lambda match: variables[match[1]], figures)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        size=wording.size, number=wording.number, figure=wording.figure, moment=wording.moment, duration=wording.duration
    )
    environment.globals.update(
        style=_style(),
        loss=wording.loss,
        verdict=wording.verdict,
        products=wording.products,
        measured=wording.MEASURED,
        MIB=wording.MIB,
    )
    return environment


@cache
def _source(name: str) -> str:
    return (resources.files(__package__) / "dashboard" / "templates" / name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    return (static_folder() / "style.css").read_text(encoding="utf-8")
