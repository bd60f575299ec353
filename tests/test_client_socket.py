"""The clients and a real `bitplan serve` on a real socket, with its real worker and a real, tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bitplan.allocator import Plan
from bitplan.api.client import AsyncClient, Client, Sweep
from bitplan.api.schema import JobView
from shelf import Shelf

SERVE = "from bitplan.api.cli import main; raise SystemExit(main(['serve', '--json', '--port', '{port}']))"


@contextmanager
def serving(home: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`bitplan serve` as a person starts it, and its address."""
    environment = {**os.environ, "BITPLAN_HOME": str(home)}
    with (home / "log").open("a") as log:
        service = subprocess.Popen(
            [sys.executable, "-c", SERVE.format(port=port)], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        assert service.stdout is not None
        yield service, json.loads("".join(iter(service.stdout.readline, "}\n")) + "}")["url"]
    finally:
        with suppress(ProcessLookupError):
            service.kill()
        service.communicate()


def test_a_sweep_outlives_its_service_and_its_client(shelf: Shelf, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    asked: dict[str, Any] = {
        "models": [str(shelf.model("llama"))],
        "budgets": ["35%", "45%", "1%"],
        "metrics": ["weight_error"],
        "formats": ["int4-g64", "int8-g64-asym"],
        "rounding": "nearest",
        "progress": False,
    }
    waiting, results = threading.Event(), []

    def sweep(url: str) -> None:
        def watch(_: JobView) -> None:
            waiting.set()

        with Client(url) as client:
            results.append(client.sweep(**asked, watch=watch))

    with serving(home) as (first, url):
        thread = threading.Thread(target=sweep, args=(url,), daemon=True)
        thread.start()
        assert waiting.wait(60)
        first.send_signal(signal.SIGKILL)
        first.wait()
    with serving(home, int(url.rpartition(":")[2])) as (second, again):
        assert again == url
        thread.join(400)
        (found,) = results
        assert isinstance(found, Sweep)
        assert [row.status for row in found.rows] == ["succeeded", "succeeded", "failed"]
        with Client(url) as client:
            assert client.health()["status"] == "ready"
            assert client.sweep(**asked) == found  # as after a kill of the client
            assert len(client.sweeps().items) == 1
        asyncio.run(_with_asyncio(url, found, tmp_path))
        with urllib.request.urlopen(url, timeout=10) as page:
            assert b"<html" in page.read()
        second.send_signal(signal.SIGINT)
        out, _ = second.communicate(timeout=30)
        assert (second.returncode, out) == (0, "")
    assert "Traceback" not in (home / "log").read_text()


async def _with_asyncio(url: str, sweep: Sweep, folder: Path) -> None:
    async with AsyncClient(url) as client:
        small, large = sweep.plans
        assert [plan.id async for plan in client.all_plans(sort="bytes")] == [small.id, large.id]
        events, (difference, certificate), out = await asyncio.gather(
            _followed(client, small.id),
            asyncio.gather(client.diff(small.id, large.id), client.certificate(small.id)),
            client.execute(small.id, folder / "executed"),
        )
        assert difference["rows"]
        assert certificate["plan_id"] == small.id
        assert [event.version for event in events] == sorted({event.version for event in events})
        assert events[-1].status == "succeeded"
        assert Plan.from_json((out / "plan.json").read_text()).id == small.id
        (ready,) = await client.exports(small.id)
        assert {file.path: file.bytes for file in ready.files} == {
            path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()
        }
        evidence = (await client.plan(small.id)).evidence
        assert evidence is not None
        assert evidence["bytes"]["measured"] == evidence["bytes"]["predicted"] == small.bytes


async def _followed(client: AsyncClient, plan_id: str) -> list[JobView]:
    """Every event of a verification."""
    verification = asyncio.create_task(client.verify(plan_id))
    while True:
        found = [job async for job in client.all_jobs(kind="verify")]
        if found:
            break
        await asyncio.sleep(0.05)
    events = [event async for event in client.events(found[0])]
    await verification
    return events
