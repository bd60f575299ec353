"""The load benchmark in small: every answer is right and none is lost, with 32 connections at once. No times."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn

import stranger
from bitplan.allocator import Plan
from bitplan.api.app import create_app
from bitplan.api.serving import server_config
from bitplan.api.settings import Settings
from bitplan.api.store import Store

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CONNECTIONS, PLANS = 32, 160
Requests = list[tuple[str, str, Any, dict[str, str]]]


def program(name: str) -> ModuleType:
    """A file of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


open_loop, synthetic = program("open_loop"), program("synthetic")


@contextmanager
def served(settings: Settings) -> Iterator[int]:
    """The application on a socket of this process; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(create_app(settings)))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Settings]]:
    """A service with one profile of 35 units x 6 formats: its port, the model and the settings."""
    home = tmp_path_factory.mktemp("load")
    settings = Settings(home, f"sqlite:///{home / 'bitplan.db'}")
    model = synthetic.model_folder(home / "model")
    with closing(Store.open(settings.database_url)) as store:
        synthetic.keep(model, synthetic.dense_units(5), home, store)
    with served(settings) as port:
        yield port, model, settings


def send(port: int, requests: Requests, rate: float | None = None) -> list[list[Any]]:
    specification = {"host": "127.0.0.1", "port": port, "connections": CONNECTIONS, "rate": rate, "requests": requests}
    answers: list[list[Any]] = asyncio.run(open_loop.run(specification))["answers"]
    return answers


def plans(model: Path, budgets: list[int]) -> Requests:
    return [("POST", "/v1/plans", {"model": str(model), "formats": synthetic.PALETTE, "budget": str(b)}, {}) for b in budgets]


def test_distinct_budgets_at_once_are_distinct_plans_all_stored_and_all_right(service: tuple[int, Path, Settings]) -> None:
    port, model, settings = service
    budgets = [6_000_000 + 17_001 * number for number in range(PLANS)]
    answers = send(port, plans(model, budgets))
    assert {status for _, status, _, _ in answers} == {201}
    ids = [identity for *_, identity in answers]
    assert len(set(ids)) == PLANS
    with closing(Store.open(settings.database_url)) as store:
        for budget, identity, length in zip(budgets, ids, (answer[2] for answer in answers), strict=True):
            stored = store.stored_plan(identity).text()
            assert len(stored.encode()) == length
            assert json.loads(stored)["budget"]["limit_bytes"] == budget
        stranger.check(store.stored_plan(ids[7]).text())
        listed, cursor = [], None
        while True:
            page = store.plans(limit=200, cursor=cursor)
            listed += [summary.id for summary in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert set(ids) <= set(listed)
    assert len(listed) == len(set(listed))


def test_one_budget_from_all_sides_is_one_plan_made_once(service: tuple[int, Path, Settings]) -> None:
    port, model, _ = service
    answers = send(port, plans(model, [20_000_003] * 2 * CONNECTIONS))
    assert sorted(status for _, status, _, _ in answers) == [200] * (2 * CONNECTIONS - 1) + [201]
    assert len({(length, identity) for _, _, length, identity in answers}) == 1


def test_plans_lists_and_refusals_side_by_side(service: tuple[int, Path, Settings]) -> None:
    port, model, _ = service
    asked = plans(model, [9_000_001 + 1000 * number for number in range(20)])
    lists: Requests = [("GET", "/v1/plans?sort=bytes&limit=5", None, {})] * 20
    refused = plans(model, [1] * 20)
    mixed = [request for three in zip(asked, lists, refused, strict=True) for request in three]
    answers = send(port, mixed, rate=400.0)
    assert [answer[1] for answer in answers] == [201, 200, 422] * 20


def test_the_client_counts_from_when_a_request_was_due() -> None:
    """A server that answers one request after another, each after 50 ms: the tenth has waited for nine."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            await asyncio.sleep(0.05)
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"id":"abcd"')
        writer.close()

    async def run() -> Any:
        server = await asyncio.start_server(slow, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            requests: Requests = [("GET", "/", None, {})] * 10
            return await open_loop.run(
                {"host": "127.0.0.1", "port": port, "connections": 1, "rate": 1000.0, "requests": requests}
            )

    answers = asyncio.run(run())["answers"]
    assert [answer[1:] for answer in answers] == [[200, 12, "abcd"]] * 10
    for number, answer in enumerate(answers):
        assert answer[0] >= 50 * (number + 1) - number - 1, "due 1 ms apart, answered 50 ms apart"


def test_the_synthetic_plan_of_the_benchmark_is_certified(service: tuple[int, Path, Settings]) -> None:
    port, model, settings = service
    ((_, status, _, identity),) = send(port, plans(model, [8_765_432]))
    assert status == 201
    with closing(Store.open(settings.database_url)) as store:
        plan = Plan.from_json(store.stored_plan(identity).document)
    assert plan.certificate.proof in ("multipliers", "search")
    assert plan.model.fingerprint == hashlib.sha256(b"35 0").hexdigest()
