"""How the socket is served: uvicorn with an end to patience.

uvicorn closes a connection that says nothing between two requests, but waits for ever for the end of a request's head, and
keeps as much of it as is sent: a few thousand connections that send a byte a minute would take up the service. Here the
head of every request has to be there HEAD_SECONDS after its first byte, or after the connection was opened, and within
HEAD_BYTES. Bodies are the guard's to time and to measure.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 32 * 1024
TOO_LONG = f"the head of a request may have {HEAD_BYTES} bytes at most"
KEEP_ALIVE_SECONDS = 15
CONNECTIONS = 1000  # beyond these, requests are answered 503 at once


class ImpatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 in which the head of a request may take HEAD_SECONDS and HEAD_BYTES at most."""

    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0  # what has arrived of an unfinished head, less the read in which it began: that held more, perhaps

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head is not None and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._head is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise ValueError(TOO_LONG)  # which the parser turns into an answer
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self.transport.close()


# What `uvicorn.Config` is told beside the application.
PATIENCE: dict[str, Any] = {
    "http": ImpatientProtocol,
    "ws": "none",
    "limit_concurrency": CONNECTIONS,
    "timeout_keep_alive": KEEP_ALIVE_SECONDS,
    "server_header": False,
}
