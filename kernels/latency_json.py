"""Latency tables as JSON: what a file of `latency_tables/` holds, checked when it is read.

    {"device": "h100",                       the file's name, without .json
     "machine": null | "...",                processor, memory, clock, threads: what a reader must know to measure again
     "date": null | "2026-11-22",            of the measurement
     "versions": {"torch": "2.13.0", ...},
     "note": "...",                          anything else: where the constants come from
     "fit_error": null | 0.07,               relative, at a shape that the fit had not seen; null: constants are not fitted
     "constants": {"bandwidth": ..., ..., "gemv": [8 numbers or none], "gemm": [...]},      the fields of `Constants`
     "points": [{"kernel": "gemv", "outputs": 4096, "inputs": 4096, "bits": 4, "rows": 1, "group_size": 128, "seconds": 5e-6}]}

Points make a device measured, so they are refused without a date and a machine.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from .roofline import DENSE, Constants, DeviceModel, Point

TABLES = Path(__file__).parent / "latency_tables"
PARTS = ("device", "machine", "date", "versions", "note", "fit_error", "constants", "points")
POINT_PARTS = tuple(part.name for part in fields(Point))
WHOLE = ("outputs", "inputs", "bits", "rows")


def devices() -> tuple[str, ...]:
    """Names of the devices that a table is shipped for."""
    return tuple(sorted(path.stem for path in TABLES.glob("*.json")))


@cache
def device_model(name: str) -> DeviceModel:
    """The shipped model of a device. Raises KeyError, listing the known ones, for an unknown name."""
    if name not in devices():
        raise KeyError(f"there is no latency table of device {name!r}; known: {', '.join(devices())}")
    return load(TABLES / f"{name}.json")


def load(path: Path) -> DeviceModel:
    """The device of a file written by `to_json`. Raises ValueError, naming what is wrong and the remedy."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error}); write it anew with `to_json`") from error
    model = from_json(document, path.name)
    if model.name != path.stem:
        raise ValueError(f"{path.name} holds device {model.name!r}; name the file after its device")
    return model


def from_json(document: Any, where: str) -> DeviceModel:
    """The device that a document describes; `where` names it in messages. Raises ValueError for any other document."""
    _has(document, PARTS, where)
    points = document["points"]
    if not isinstance(points, list):
        raise ValueError(f"{where}: points is not a list; write [] where nothing was measured")
    if not isinstance(document["device"], str) or not isinstance(document["note"], str):
        raise ValueError(f"{where}: device and note must be text; write the device's name and where its numbers come from")
    if points and not (_text(document["date"]) and _text(document["machine"])):
        raise ValueError(f"{where}: points without a date and a machine cannot be called measured; write both")
    versions = document["versions"]
    if not isinstance(versions, dict) or not all(isinstance(value, str) for value in versions.values()):
        raise ValueError(f"{where}: versions is not an object of texts; write for instance {{'torch': '2.13.0'}}")
    if document["fit_error"] is not None:
        _number(document["fit_error"], f"{where}: fit_error")
        if not points:
            raise ValueError(f"{where}: a fit_error without points; write null, or the points that were fitted")
    read = tuple(_point(point, f"{where}: point {i}") for i, point in enumerate(points))
    seen: set[tuple[Any, ...]] = set()
    for i, point in enumerate(read):
        key = point.kernel, *point.shape, point.bits, point.rows, point.group_size
        if key in seen:
            raise ValueError(f"{where}: point {i} repeats an earlier one; keep one time for each product and kernel")
        seen.add(key)
    return DeviceModel(
        document["device"],
        _constants(document["constants"], f"{where}: constants"),
        document["fit_error"],
        document["date"],
        document["machine"],
        versions,
        document["note"],
        read,
    )


def to_json(model: DeviceModel) -> dict[str, Any]:
    """The document of a device: the inverse of `from_json`."""
    constants = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(model.constants).items()}
    return {
        "device": model.name,
        "machine": model.machine,
        "date": model.date,
        "versions": dict(model.versions),
        "note": model.note,
        "fit_error": model.fit_error,
        "constants": constants,
        "points": [asdict(point) for point in model.points],
    }


def _constants(given: Any, where: str) -> Constants:
    names = tuple(part.name for part in fields(Constants))
    _has(given, names, where)
    for name in names:
        value = given[name]
        if name in ("gemv", "gemm"):
            if not isinstance(value, list) or len(value) not in (0, 8):
                raise ValueError(f"{where}: {name} is not a list of 8 numbers, for 1 to 8 bits, nor an empty one")
            for instructions in value:
                _number(instructions, f"{where}: {name}")
        else:
            _number(value, f"{where}: {name}", zero=name == "t0")
    if not isinstance(given["block_rows"], int):
        raise ValueError(f"{where}: block_rows is not a whole number; write the rows that share one unpacking")
    read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Constants(**read)


def _point(given: Any, where: str) -> Point:
    _has(given, POINT_PARTS, where)
    for name in WHOLE:
        if not isinstance(given[name], int) or isinstance(given[name], bool) or given[name] < 1:
            raise ValueError(f"{where}: {name} is {given[name]!r}, not a whole number above zero; mend or drop the point")
    if given["bits"] not in (*range(1, 9), *DENSE):
        raise ValueError(f"{where}: {given['bits']} bits; points have 1 to 8 bits, 16 or 32")
    group = given["group_size"]
    if group is not None and (not isinstance(group, int) or isinstance(group, bool) or group < 1):
        raise ValueError(f"{where}: group_size is {group!r}; write the inputs to a scale, or null for one scale a row")
    if not _text(given["kernel"]):
        raise ValueError(f"{where}: kernel is {given['kernel']!r}; write the name of what was timed")
    _number(given["seconds"], f"{where}: seconds")
    return Point(**given)


def _has(given: Any, names: tuple[str, ...], where: str) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where} is not an object; write one with {', '.join(names)}")
    missing, surplus = [name for name in names if name not in given], [name for name in given if name not in names]
    if missing or surplus:
        wrong = " and ".join(
            [f"{', '.join(missing)} missing"] * bool(missing) + [f"{', '.join(surplus)} unknown"] * bool(surplus)
        )
        raise ValueError(f"{where}: {wrong}; it has the parts {', '.join(names)}")


def _number(value: Any, where: str, zero: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{where} is {value!r}, not a finite number above zero; measure or correct it")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
