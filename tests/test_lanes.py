"""Lanes: what is short does not wait for what is long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import pytest

from bitplan.api import lanes as module
from bitplan.api.lanes import Lanes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    found = Lanes()
    yield found
    found.close()


def where() -> str:
    return threading.current_thread().name.rpartition("_")[0]


def slowly(seconds: float) -> Callable[[], str]:
    def work() -> str:
        time.sleep(seconds)
        return where()

    return work


def test_a_kind_is_done_where_it_belongs_by_the_time_it_last_took(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_SECONDS", 0.05)

    async def asked() -> list[str]:
        return [await lanes.run("kind", slowly(seconds)) for seconds in (0.0, 0.0, 0.2, 0.0, 0.0)]

    assert asyncio.run(asked()) == ["bitplan-long", "bitplan-short", "bitplan-short", "bitplan-long", "bitplan-short"]


def test_a_kind_that_is_forgotten_is_taken_for_long(lanes: Lanes) -> None:
    async def asked() -> list[str]:
        before = [await lanes.run("kind", where) for _ in range(2)]
        lanes.forget("kind")
        return [*before, await lanes.run("kind", where)]

    assert asyncio.run(asked()) == ["bitplan-long", "bitplan-short", "bitplan-long"]


def test_short_work_passes_any_number_of_long_ones(lanes: Lanes) -> None:
    stop = threading.Event()

    async def asked() -> None:
        await lanes.run("short", where)
        hogs = [asyncio.create_task(lanes.run(f"long {number}", lambda: stop.wait(60))) for number in range(6)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(lanes.run("short", where), 30) == "bitplan-short"
        stop.set()
        assert all(await asyncio.gather(*hogs))

    asyncio.run(asked())


def test_an_error_is_the_callers_and_its_time_counts(lanes: Lanes) -> None:
    def broken() -> None:
        raise ValueError("no such plan")

    async def asked() -> str:
        with pytest.raises(ValueError, match="no such plan"):
            await lanes.run("kind", broken)
        return await lanes.run("kind", where)

    assert asyncio.run(asked()) == "bitplan-short"


def test_the_work_sees_the_callers_context(lanes: Lanes) -> None:
    request: ContextVar[str] = ContextVar("request")

    async def asked(name: str) -> str:
        request.set(name)
        return await lanes.run("kind", request.get)

    async def both() -> list[str]:
        return list(await asyncio.gather(asked("one"), asked("two")))

    assert asyncio.run(both()) == ["one", "two"]
