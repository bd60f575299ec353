"""What the tournaments of all models say together, as Markdown. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

DEFAULT = "kl_fisher"
SIGNIFICANT = 2.0  # standard errors of the paired difference

Documents = dict[str, dict[str, Any]]  # a tournament's document by its model


def section(documents: Documents) -> list[str]:
    """One line for each estimator and rival that every model has."""
    names = set.intersection(*[_entrants(document) for document in documents.values()]) - {DEFAULT}
    lines = []
    for name in names:
        means = [math.exp(_mean(_ratios(document, name, "none"))) for document in documents.values()]
        mean = math.exp(_mean([math.log(each) for each in means]))
        apart = [z for document in documents.values() for z in _differences(document, name)]
        better, worse = sum(z < -SIGNIFICANT for z in apart), sum(z > SIGNIFICANT for z in apart)
        shown = " | ".join(f"{each:.2f}" for each in means)
        lines.append((mean, f"| {name} | {shown} | {mean:.2f} | {better} | {worse} | {len(apart)} |"))
    return [
        f"Loss of the plans without ties as a multiple of `{DEFAULT}`'s, geometric mean over the sizes; and in how many rows "
        "(model, size, with and without ties where they change a plan) the paired difference is over two standard errors.",
        "",
        "| plan by | " + " | ".join(documents) + " | all | better in | worse in | of rows |",
        "| --- |" + " --- |" * (len(documents) + 4),
        *(line for _, line in sorted(lines)),
        "",
    ]


def _cells(document: dict[str, Any], tie: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, cell in document["plans"].items():
        if key.startswith(f"{tie} ") and DEFAULT in cell["entries"]:
            yield key.removeprefix(f"{tie} "), cell["entries"]


def _entrants(document: dict[str, Any]) -> set[str]:
    names = set.intersection(*[set(entries) for _, entries in _cells(document, "none")])
    return {name for name in names if not name.startswith("random")}


def _ratios(document: dict[str, Any], name: str, tie: str) -> list[float]:
    return [math.log(entries[name]["loss"] / entries[DEFAULT]["loss"]) for _, entries in _cells(document, tie) if name in entries]


def _differences(document: dict[str, Any], name: str) -> Iterator[float]:
    """Paired differences in standard errors, of rows whose two plans are not both those of an earlier row."""
    seen = set()
    for tie in ("none", "vllm"):
        for _, entries in _cells(document, tie):
            if name not in entries or not entries[name].get("above_default_stderr"):
                continue
            plans = (entries[DEFAULT]["bits"], entries[name]["bits"])
            if plans not in seen:
                seen.add(plans)
                yield entries[name]["above_default"] / entries[name]["above_default_stderr"]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
