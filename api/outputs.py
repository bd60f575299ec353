"""Files that the command line writes: a frontier in the format that its name asks for."""

from __future__ import annotations

import csv
import io
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..allocator.errors import UsageError
from ..allocator.home import write_whole
from .curve import curve
from .scatter import frontier_points, uniform_points
from .templates import render, svg_style

if TYPE_CHECKING:
    from ..allocator import Plan

SUFFIXES = (".csv", ".html", ".png", ".svg")
PNG_SCALE = 2.0


def check_suffix(path: Path) -> None:
    """Refuse a name that says no format, before any work is done for it. Raises UsageError."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"a frontier cannot be written as {path.name!r}; end the name in one of {', '.join(SUFFIXES)}")
    if path.suffix == ".png" and find_spec("vl_convert") is None:
        raise UsageError("writing .png needs the package vl-convert-python; install it, or write .svg, .html or .csv")


def write_frontier(path: Path, plan: Plan) -> None:
    """Write the frontier that `plan` lies on: every vertex as a table (.csv), a picture (.svg, .png) or both (.html)."""
    check_suffix(path)
    figure = curve(frontier_points(plan), uniform_points(plan), plan.predicted.quantity)
    if path.suffix == ".csv":
        content = _csv(plan).encode()
    elif path.suffix == ".html":
        content = render("frontier.html", plan=plan, curve=figure, points=plan.frontier()).encode()
    else:
        picture = figure.replace("<title>", f"<style>{svg_style()}</style><title>", 1)
        content = picture.encode() if path.suffix == ".svg" else _png(picture)
    write_whole(path, content)


def _csv(plan: Plan) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["bytes", "loss", "multiplier", "quantity", "model", "target"])
    for point in plan.frontier():
        row = [int(point["bytes"]), repr(point["loss"]), repr(point["multiplier"])]
        writer.writerow([*row, plan.predicted.quantity, plan.model.id, plan.target])
    return text.getvalue()


def _png(picture: str) -> bytes:
    png: bytes = import_module("vl_convert").svg_to_png(picture, scale=PNG_SCALE)
    return png
