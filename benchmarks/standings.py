"""The tournament's results in words and as a picture; measures nothing. `summary.py` calls it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from bitplan.sensitivity import METRICS

DEFAULT = "kl_fisher"
ROW, LEFT, RIGHT, TOP, BOTTOM, PANEL = 17, 150, 20, 46, 40, 340
LEGEND = (
    "The measured loss of the default's plan, and of the others as multiples of it; **bold** where the paired difference is over "
    "two standard errors in the other's favour, *slanted* where it is within two."
)
COLUMNS = ("mean", "rank correlation (all, 2, 3, 4 bits)", "measured / predicted", "seconds (/ plain pass)", "peak GB")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.one{stroke:#0b6e99;stroke-width:1.5}"
    ".worse{fill:#c2410c}.better{fill:#4d7c0f}.same{fill:#888}.rival{font-style:italic}"
)


def losses(document: dict[str, Any], tie: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Contestant -> size -> entry, random plans as one with the mean of their losses."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, cell in document["plans"].items():
        kind, size = key.split()
        if kind != tie or DEFAULT not in cell["entries"]:
            continue
        chance = [entry["loss"] for name, entry in cell["entries"].items() if name.startswith("random")]
        for name, entry in cell["entries"].items():
            if not name.startswith("random"):
                found.setdefault(name, {})[size] = entry
        if chance:
            found.setdefault("random (mean)", {})[size] = {"loss": float(np.mean(chance))}
    return found


def ordered(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Contestants by the mean logarithm of their loss over the default's."""
    return sorted(found, key=lambda name: relative(found, name))


def relative(found: dict[str, dict[str, dict[str, Any]]], name: str) -> float:
    shared = [size for size in found[name] if size in found[DEFAULT]]
    return float(np.mean([math.log(found[name][size]["loss"] / found[DEFAULT][size]["loss"]) for size in shared]))


def section(document: dict[str, Any], name: str) -> list[str]:
    """A table for each kind of ties: loss over the default's by size, rank correlation, cost."""
    lines = [f"### {name}", ""]
    ranks, profiles = document["units"].get("ranks", {}), document["profiles"]
    plain = document.get("plain_pass", {}).get("seconds")
    for tie in ("none", "vllm"):
        found = losses(document, tie)
        if not found:
            continue
        if tie == "vllm" and same_plans(document):
            lines += ["Ties of vllm bind nothing here: the plans are the same.", ""]
            continue
        sizes = list(found[DEFAULT])
        lines += [f"Ties: {tie}." + (f" {LEGEND}" if tie == "none" else ""), ""]
        lines += ["| " + " | ".join(["plan by", *(f"{size} bits" for size in sizes), *COLUMNS]) + " |"]
        lines += ["| --- |" + " --- |" * (len(sizes) + len(COLUMNS))]
        for contestant in ordered(found):
            entries = found[contestant]
            cells = [_cell(contestant, entries.get(size), found[DEFAULT].get(size)) for size in sizes]
            rank = ranks.get(contestant)
            correlation = "" if rank is None else " ".join(f"{value:.2f}" for key, value in rank.items() if "measured" not in key)
            ratios = [
                f"{entries[size]['loss'] / entries[size]['predicted']:.2f}"
                for size in sizes
                if size in entries and entries[size].get("predicted")
            ]
            told = profiles.get(contestant, {})
            seconds = told.get("seconds")
            cost = "" if seconds is None else f"{seconds:,.0f}" + (f" ({seconds / plain:.1f})" if plain else "")
            peak = f"{told['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in told else ""
            mean = f"{math.exp(relative(found, contestant)):.2f}"
            lines.append(
                f"| {contestant} | " + " | ".join(cells) + f" | {mean} | {correlation} | {' '.join(ratios)} | {cost} | {peak} |"
            )
        lines.append("")
    lines += promises(document)
    refused = {metric: told["refused"] for metric, told in profiles.items() if "refused" in told}
    if refused:
        lines += ["Not for this model: " + "; ".join(f"{metric} ({why})" for metric, why in refused.items()) + ".", ""]
    left = document.get("left_out", {})
    if left:
        lines += [f"Left out, hours here: {', '.join(left)}.", ""]
    unplayed = [name for name, metric in METRICS.items() if not metric.only and name not in profiles and name not in left]
    if unplayed:
        lines += [f"Not played yet: {', '.join(unplayed)}.", ""]
    skipped = [key for key, cell in document["plans"].items() if "skipped" in cell]
    if skipped:
        lines += [f"Below the narrowest plan: {', '.join(skipped)}.", ""]
    lines += [f"![Loss over the default's](tournament-{name}.svg)", ""]
    return lines


def same_plans(document: dict[str, Any]) -> bool:
    """Whether ties changed no plan of any contestant."""
    plans = document["plans"]
    return all(
        {name: entry["bits"] for name, entry in cell["entries"].items()}
        == {name: entry["bits"] for name, entry in plans.get("vllm " + key.split()[1], {"entries": {}})["entries"].items()}
        for key, cell in plans.items()
        if key.startswith("none")
    )


def promises(document: dict[str, Any]) -> list[str]:
    """What the default predicted for its plans and what became of it, beside the second-order loss of the whole plan."""
    rows = []
    for key, cell in document["plans"].items():
        entry = cell["entries"].get(DEFAULT, {})
        if "joint" in entry:
            predicted, joint, same, other = (entry[name] for name in ("predicted", "joint", "same_data", "loss"))
            rows.append(
                f"| {key.split()[1]} bits, ties {key.split()[0]} | {predicted:.4g} | {joint:.4g} | {same:.4g} | {other:.4g} "
                f"| {same / predicted:.2f} | {same / joint:.2f} | {other / predicted:.2f} |"
            )
    if not rows:
        return []
    return [
        f"What {DEFAULT} promised: the sum over units; the second-order loss of the whole plan, products of units included; and "
        "what was measured on the data of the estimate and on other data.",
        "",
        "| plan | sum of units | whole plan | same data | other data | same / sum | same / whole | other / sum |",
        "| --- |" + " --- |" * 7,
        *rows,
        "",
    ]


def _cell(name: str, entry: dict[str, Any] | None, default: dict[str, Any] | None) -> str:
    if entry is None or default is None:
        return ""
    if name == DEFAULT:
        return f"{entry['loss']:.4g} ± {entry['stderr']:.2g}"
    text = f"{entry['loss'] / default['loss']:.2f}"
    difference, error = entry.get("above_default"), entry.get("above_default_stderr")
    if difference is None or error is None:
        return text
    return f"**{text}**" if difference < -2 * error else f"*{text}*" if abs(difference) <= 2 * error else text


def picture(document: dict[str, Any], name: str) -> str:
    """One panel a kind of ties: a row a contestant, a dot a size, across the loss over the default's, logarithmic."""
    panels = [(tie, losses(document, tie)) for tie in ("none", "vllm")]
    panels = [(tie, found) for tie, found in panels if found][: 1 if same_plans(document) else 2]
    rows = max(len(found) for _, found in panels)
    width, height = len(panels) * (LEFT + PANEL + RIGHT), TOP + rows * ROW + BOTTOM
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for index, (tie, found) in enumerate(panels):
        parts += _panel(found, tie, index * (LEFT + PANEL + RIGHT), TOP + rows * ROW)
    title = f"{name}: measured loss of each estimator's plans over that of {DEFAULT}'s"
    words = " ".join(f"{contestant}: {math.exp(relative(panels[0][1], contestant)):.2f}." for contestant in ordered(panels[0][1]))
    head = f"<title>{escape(title)}</title><desc>{escape(words)}</desc><style>{STYLE}</style>"
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>{head}{"".join(parts)}</svg>\n'


def _panel(found: dict[str, dict[str, dict[str, Any]]], tie: str, left: float, floor: float) -> Iterable[str]:
    ratios = [
        entry["loss"] / found[DEFAULT][size]["loss"]
        for entries in found.values()
        for size, entry in entries.items()
        if size in found[DEFAULT]
    ]
    low, high = math.log2(min(0.7, *ratios)), math.log2(max(2.0, *ratios))

    def across(ratio: float) -> float:
        return left + LEFT + PANEL * (math.log2(ratio) - low) / (high - low)

    yield f'<text x="{left + 30}" y="16">ties: {tie}. Loss over that of {DEFAULT}; grey: within two standard errors</text>'
    for power in range(math.ceil(low), math.floor(high) + 1):
        x = across(2.0**power)
        yield f'<line class="{"one" if power == 0 else "grid"}" x1="{x:.1f}" y1="{TOP - 18}" x2="{x:.1f}" y2="{floor}"/>'
        yield f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{2.0**power:g}</text>'
    yield f'<text x="{left + LEFT}" y="{floor + 32}">one dot a size, the palest the smallest</text>'
    for row, contestant in enumerate(ordered(found)):
        y = TOP + row * ROW
        yield f'<text x="{left + LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(contestant)}</text>'
        for step, (size, entry) in enumerate(sorted(found[contestant].items(), key=lambda item: float(item[0]))):
            if size not in found[DEFAULT]:
                continue
            ratio = entry["loss"] / found[DEFAULT][size]["loss"]
            difference, error = entry.get("above_default", 0.0), entry.get("above_default_stderr", 0.0)
            look = "same" if abs(difference) <= 2 * error else "worse" if difference > 0 else "better"
            tip = f"{contestant}, {size} bits: {ratio:.2f}"
            opacity = 0.35 + 0.2 * step
            where = f'cx="{across(ratio):.1f}" cy="{y}" r="4.5" opacity="{opacity:.2f}"'
            yield f'<circle class="{look}" {where}><title>{escape(tip)}</title></circle>'
