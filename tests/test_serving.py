"""`bitplan serve` as a process: where it listens, whom it asks for keys, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitplan.allocator.errors import UsageError
from bitplan.api import serving

# The worker's place is taken by something that says when it begins and ends.
SERVE = """
import sys
from bitplan.api import serving

class Witness:
    def __init__(self, settings):
        pass
    def __enter__(self):
        print("a worker works", flush=True)
    def __exit__(self, *_):
        print("the worker has ended", flush=True)

if __name__ == "__main__":  # several processes import this file anew
    serving.Supervisor = Witness
    serving.serve(sys.argv[1], 0, None, lambda url: print(url, flush=True), processes=int(sys.argv[2]))
    print("the end", flush=True)
"""
SECONDS = 60.0  # for what takes a few


@contextmanager
def serve(host: str, home: Path, processes: int = 1) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, and the port that it says it listens on."""
    environment = {**os.environ, "BITPLAN_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVE, host, str(processes)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "a worker works\n"
            said = re.fullmatch(rf"http://{re.escape(host)}:(\d+)\n", process.stdout.readline())
            assert said is not None
            yield process, int(said[1])
        finally:
            process.kill()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, HTTPConnection, Any]:
    """Status and response; the connection stays open."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    headers = {} if body is None else {"content-type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, connection, response


def test_sigterm_cuts_open_streams_and_ends_the_worker_first(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with serve("127.0.0.1", tmp_path / "home") as (process, port):
        status, first, response = ask(port, "POST", "/v1/plans", {"model": str(model), "budget": "50%"})
        job = json.loads(response.read())
        assert status == 202, job
        status, stream, events = ask(port, "GET", job["links"]["events"])
        assert status == 200
        assert events.readline(), "the stream is open"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=SECONDS)
        assert output == "the worker has ended\nthe end\n"
        assert process.returncode == 0
        for connection in (first, stream):
            connection.close()


def test_beyond_loopback_everybody_needs_a_key_and_ctrl_c_ends_it_well(tmp_path: Path) -> None:
    with serve("0.0.0.0", tmp_path / "home") as (process, port):
        for path, expected in (("/healthz", 200), ("/v1/plans", 401)):
            status, connection, _ = ask(port, "GET", path)
            assert status == expected, path
            connection.close()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=SECONDS)
        assert output == "the worker has ended\nthe end\n"
        assert process.returncode == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_where_it_cannot_listen_it_says_so_in_a_sentence(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on {re.escape(host)}:{port} \(.+\); choose another with --host"):
            serving.serve(host, port, None, lambda url: None, worker=False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_several_processes_answer_on_one_socket_and_end_with_the_first(how: signal.Signals, tmp_path: Path) -> None:
    with serve("127.0.0.1", tmp_path / "home", processes=2) as (process, port):
        status, connection, response = ask(port, "GET", "/v1/plans")
        assert status == 200
        assert json.loads(response.read())["items"] == []
        connection.close()
        children = psutil.Process(process.pid).children(recursive=True)
        serving_ones = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(serving_ones) == 2
        process.send_signal(how)
        output, _ = process.communicate(timeout=SECONDS)
        assert output == ("the worker has ended\nthe end\n" if how == signal.SIGTERM else "")
        assert psutil.wait_procs(serving_ones, timeout=SECONDS)[1] == []
