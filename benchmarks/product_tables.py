"""The results of cpu_matmul.py and decode.py as pages of the summary."""

from __future__ import annotations

from typing import Any


def cpu_matmul(document: dict[str, Any]) -> list[str]:
    """Speed relative to fp32, one column for each shape and batch, one row for each method."""
    cells: dict[str, dict[str, Any]] = document["results"]
    methods = list(dict.fromkeys(method for cell in cells.values() for method in cell))
    rows = [f"| {method} | " + " | ".join(_speed(cell.get(method)) for cell in cells.values()) + " |" for method in methods]
    errors = ", ".join(f"{bits} {100 * error:.2f} %" for bits, error in document["int8_error"].items())
    return [
        "Speed relative to torch's fp32 product, run in pairs with it on one thread: the median of the pairs' ratios, and the "
        f"quartiles. Groups of {document['group_size']}; `int8`: activations rounded to int8; rows that name no instruction set "
        f"use {document['instruction_sets'][0]}.",
        "",
        "| method | " + " | ".join(cells) + " |",
        "| --- |" + " --- |" * len(cells),
        *rows,
        "",
        f"Relative error of the result with int8 activations, Gaussian: {errors}.",
        "",
    ]


def decode(document: dict[str, Any], name: str) -> list[str]:
    """One model written with: speed and memory beside fp32."""
    memory = document["process_bytes"]
    live, promised = document["live_bytes"], document["plan_bytes"]
    speed, lower, upper = (document[key] for key in ("speed", "lower_quartile", "upper_quartile"))
    ours, theirs = document["tokens_a_second"], document["fp32_tokens_a_second"]
    return [
        f"{name}, every unit in {document['format']}, one thread, batch 1: {speed:.2f} times the tokens a second of fp32 "
        f"transformers (quartiles {lower:.2f} and {upper:.2f}; {ours:.1f} beside {theirs:.1f} a second). Live weights "
        f"{live / 1e6:.1f} MB, {100 * (live / promised - 1):.1f} % more than the {promised / 1e6:.1f} MB of the plan, beside "
        f"{document['fp32_live_bytes'] / 1e6:.0f} MB in fp32; the process holds {memory[document['format']] / 1e6:.0f} MB beside "
        f"{memory['fp32'] / 1e6:.0f} MB. Back end {document['backend']}.",
        "",
    ]


def _speed(entry: dict[str, float] | None) -> str:
    return "" if entry is None else f"{entry['speed']:.2f} ({entry['lower_quartile']:.2f}–{entry['upper_quartile']:.2f})"
