"""The service's results as tables: what `load.py`, `hostile.py`, `durability.py` and `two_workers.py` have measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOALS_MS = {"plans": 150, "large": 1000, "lists": 50, "repeated": 150}
MEANINGS = {
    "plans": "plans from a stored profile, 210 units x 6 formats, every budget another, open loop",
    "large": "the same for 44,544 units, one after the other (the first of them reads the profile)",
    "lists": "10,000 stored plans listed, filtered and sorted, open loop",
    "repeated": "plans asked for again under their Idempotency-Key, open loop",
}


def section(results: Path) -> list[str]:
    """The lines of all files that are there."""
    lines = ["## The service", ""]
    for name, table in (("load*", load), ("hostile", hostile), ("durability", durability), ("two-workers", two_workers)):
        for path in sorted(results.glob(f"{name}.json")):
            lines += [*table(json.loads(path.read_text())), ""]
    return lines


def load(document: dict[str, Any]) -> list[str]:
    lines = [
        "| requests | due a second | p50 ms | p99 ms | goal for p99 | server's processor ms a request | taken by the host |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in document["results"].items():
        if "p99_ms" not in found:
            continue
        due = "one at a time" if found["rate"] is None else f"{found['rate']:g}"
        goal = f"{GOALS_MS[name]} ms" if name in GOALS_MS else ""
        times = (f"{found['p50_ms']:.0f}", f"{found['p99_ms']:.0f}", goal, f"{found['server_cpu_ms_a_request']:.1f}")
        cells = (MEANINGS[name], due, *times, f"{found['stolen_percent']:.0f} %" if "stolen_percent" in found else "")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return [*lines, "", *_beside_the_table(document), made_by(document)]


def _beside_the_table(document: dict[str, Any]) -> list[str]:
    results, sentences = document["results"], []
    if plans := results.get("plans"):
        sentences.append(f"Of {plans['rate']:g} plans a second that were due {plans['answered_a_second']:g} were answered.")
    if held := results.get("held"):
        tried = ", ".join(f"{milliseconds:.0f} ms at {rate}" for rate, milliseconds in held["p99_ms_at"].items())
        sentences.append(f"The goal for p99 was kept up to {held['plans_a_second']} plans a second ({tried}).")
    if memory := results.get("memory"):
        sentences.append(
            f"Resident memory over {memory['requests']:,} requests, half of them for new plans: {memory['first_mib']:g} MiB "
            f"after a fifth of them, {memory['last_mib']:g} MiB at the end, {memory['bytes_a_request']:g} bytes a request; "
            f"{memory['answered_a_second']:g} answered a second."
        )
    if additions := document["machine"].get("seconds_of_additions"):
        sentences.append(
            f"10^7 additions in a Python loop took {additions[0]:.2f} s on one core before and {additions[1]:.2f} s after."
        )
    return [" ".join(sentences), ""] if sentences else []


def hostile(document: dict[str, Any]) -> list[str]:
    requests, operations = document["requests"], document["operations"]
    failures = "none failed" if not document["failures"] else f"failed: {', '.join(document['failures'])}"
    sentence = f"{requests:,} generated requests over {operations} operations, {len(document['checks'])} checks each: {failures}."
    return [sentence, "", made_by(document)]


def durability(document: dict[str, Any]) -> list[str]:
    lines = [
        "| store | kills | jobs by their end | pieces of work | damage |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in document["runs"].items():
        kills, ends = (", ".join(f"{count} {what}" for what, count in found[key].items()) for key in ("kills", "jobs"))
        damage = ", ".join(f"{len(things)} {what}" for what, things in found["damage"].items() if things) or "none"
        lines.append(f"| {name} | {kills} | {ends} | {found['pieces_of_work']} | {damage} |")
    return [*lines, "", made_by(document)]


def two_workers(document: dict[str, Any]) -> list[str]:
    one, two = document["one worker"], document["two workers"]
    same = "the same table" if document["same_table"] else "ANOTHER TABLE"
    shares = " and ".join(str(share) for share in two["rounding_and_sums_by_worker"])
    load_before = document["machine"].get("load_before")
    busy = "" if load_before is None else f" Load average before: {load_before:.1f} on {document['machine']['cores']} cores."
    return [
        f"Two workers on one profile of 30 blocks, PostgreSQL: {shares} of the pieces that can be shared, {same}, "
        f"{two['done_twice']} done twice; {document['throughput_ratio']:.2f} times the throughput of one "
        f"({one['seconds']:.0f} s and {two['seconds']:.0f} s).{busy}",
        "",
        made_by(document),
    ]


def made_by(document: dict[str, Any]) -> str:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return (
        f"`{document['command'].strip()}`, {document['date'][:10]}, {machine['processor']}, {machine['cores']} cores, {versions}"
    )
