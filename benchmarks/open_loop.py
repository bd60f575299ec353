"""An open-loop HTTP client in a process of its own: requests are due at fixed times, whatever became of those before.

    python benchmarks/open_loop.py < specification.json > result.json

A latency runs from the moment when a request was due, not from when it could be sent: time spent waiting for a connection
or behind slow answers counts (a client that waits for its answers omits just the requests that would have been slow). The
specification: `host`, `port`, `connections`, `rate` a second (null: as fast as the connections allow), and `requests`, each
`[method, path, body, headers]`. The result: for each request `[milliseconds, status, bytes, id]`, where `id` is the first "id"
of the body, and how late the client itself was in asking, at worst.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

Answer = list[Any]  # milliseconds, status, bytes, id


async def run(specification: dict[str, Any]) -> dict[str, Any]:
    """Send every request and wait for every answer."""
    requests = specification["requests"]
    host, port, rate = specification["host"], specification["port"], specification["rate"]
    answers: list[Answer] = [[] for _ in requests]
    due: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
    lateness = 0.0

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
        try:
            while (taken := await due.get()) is not None:
                number, moment = taken
                writer.write(_encoded(host, port, *requests[number]))
                answer = await _answer(reader)
                began = moment if rate else answer[0]
                answers[number] = [1000 * (time.perf_counter() - began), *answer[1:]]
        finally:
            writer.close()

    connections = [asyncio.create_task(connection()) for _ in range(specification["connections"])]
    begin = time.perf_counter() + 0.2
    for number, moment in enumerate(_moments(begin, rate, len(requests))):
        if rate:
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            lateness = max(lateness, time.perf_counter() - moment)
        due.put_nowait((number, moment))
    for _ in connections:
        due.put_nowait(None)
    await asyncio.gather(*connections)
    return {"answers": answers, "seconds": time.perf_counter() - begin, "client_late_ms": 1000 * lateness}


def _moments(begin: float, rate: float | None, count: int) -> Iterator[float]:
    return (begin + (number / rate if rate else 0.0) for number in range(count))


def _encoded(host: str, port: int, method: str, path: str, body: Any, headers: dict[str, str]) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if content:
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


async def _answer(reader: asyncio.StreamReader) -> Answer:
    """[when the request went out, status, bytes of the body, id]; bodies are read and let go."""
    sent = time.perf_counter()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    beginning = await reader.readexactly(min(length, 1 << 12))
    left = length - len(beginning)
    while left:
        left -= len(await reader.read(min(left, 1 << 20)))
    return [sent, status, length, beginning.partition(b'"id":"')[2].partition(b'"')[0].decode()]


if __name__ == "__main__":
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
