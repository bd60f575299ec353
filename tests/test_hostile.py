"""Input of somebody who means no good: each is refused with a sentence, and nothing is learned from the refusal."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h11
import pytest
import uvicorn
from fastapi.testclient import TestClient

import fakes
import fuzz
import guests
from bitplan.api import guard, protocol
from bitplan.api.serving import server_config
from guests import MODEL, Guests

PLAN = {"model": MODEL, "budget": "25%"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    with guests.invited(tmp_path_factory.mktemp("hostile") / "home") as found:
        yield found


def ways_to_name(client: TestClient, name: str) -> Iterator[tuple[str, Any]]:
    """Every request that takes a model or a calibration file, with `name` as that."""
    if len(name) < 10_000:  # longer heads of requests do not get past the socket
        yield "inventory", client.get("/v1/inventory", params={"model": name})
    for field in ("model", "calibration"):
        body = {"model": MODEL, field: name}
        yield f"profiles, {field}", client.post("/v1/profiles", json=body)
        yield f"plans, {field}", client.post("/v1/plans", json={**body, "budget": "25%"})
        sweep = {"models": [body["model"]], "budgets": ["25%"], **({"calibration": name} if field == "calibration" else {})}
        yield f"sweeps, {field}", client.post("/v1/sweeps", json=sweep)


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "/etc/passwd",
            "/no/such/file",
            "../../etc/passwd",
            "./here",
            "~/.ssh/id_rsa",
            "~root/x",
            "..",
            "http://169.254.169.254/latest/meta-data",
            "file:///etc/passwd",
            "FILE:/etc/passwd",
            "s3://bucket/model",
            "\\\\host\\share\\model",
            "//host/share",
            "someone/../../etc",
            "a\nb",
            "a\0b",
            "\x1b[2J",
        ],
    )
    def test_no_file_and_no_address_can_be_named_from_outside(self, service: Guests, name: str) -> None:
        before = service.store.jobs.counts()
        for way, answer in ways_to_name(service.admin, name):
            assert answer.status_code in (400, 422), (way, answer.status_code, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"]
        assert service.store.jobs.counts() == before

    def test_whether_a_file_exists_is_not_told(self, service: Guests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        roots, secret = tmp_path / "roots", tmp_path / "secret"
        roots.mkdir()
        secret.write_text("words")
        (roots / "link").symlink_to(secret)
        (roots / "broken").symlink_to(tmp_path / "nowhere")
        (roots / "loop").symlink_to(roots / "loop")
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(roots))
        outside = [secret, tmp_path / "nowhere", roots / "link", roots / "broken", roots / "loop", roots / ".." / "secret"]
        answers = {path: list(ways_to_name(service.admin, str(path))) for path in outside}
        for way in range(7):
            said = {found[way][1].json()["detail"].replace(repr(str(path)[:80]), "NAME") for path, found in answers.items()}
            assert len(said) == 1, said
            assert "lies outside BITPLAN_MODEL_ROOTS" in said.pop()

    def test_a_folder_inside_the_roots_may_hold_no_way_out(
        self, service: Guests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = tmp_path / "roots" / "texts"
        texts.mkdir(parents=True)
        (texts / "a.txt").write_text("words")
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(tmp_path / "roots"))
        body = {**PLAN, "calibration": str(texts)}
        assert service.planner.post("/v1/plans", json=body).status_code == 202
        (texts / "b.txt").symlink_to("/etc/passwd")
        refused = service.planner.post("/v1/plans", json=body)
        assert refused.status_code == 422
        assert "a link out of BITPLAN_MODEL_ROOTS, b.txt" in refused.json()["detail"]

    def test_without_keys_too_there_are_names_that_are_none(self, tmp_path: Path) -> None:
        with guests.invited(tmp_path / "home", require_keys=False) as local:
            for name in ("a\0b", "http://host/model", "x" * 10**6, "x" * 5000, ""):
                for way, answer in ways_to_name(local.nobody, name):
                    assert 400 <= answer.status_code < 500, (way, name[:10])
                    assert len(answer.text) < 2000
            body = b'{"model": "\\ud800", "budget": "25%"}'
            assert local.nobody.post("/v1/plans", content=body, headers=JSON).status_code == 422

    def test_a_pattern_that_takes_for_ever_is_given_up(self, service: Guests) -> None:
        body = {**PLAN, "pins": {"(.|.)*[!?]": "int4-g64"}}
        refused = service.planner.post("/v1/plans", json=body)
        assert refused.status_code == 422
        assert "to match; write it without repeats" in refused.json()["detail"] or "matches no unit" in refused.json()["detail"]

    def test_script_in_a_models_name_is_shown_and_not_run(self, service: Guests) -> None:
        name = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
        plan = fakes.plan(model="tiny")
        service.store.put_plan(plan.model_copy(update={"model": plan.model.model_copy(update={"id": name})}))
        service.planner.post("/v1/plans", json={"model": "x/y", "budget": "25%", "metric": "kl_fisher", "pins": {name: "native"}})
        shown = 0
        for path in ("/", f"/plans/{plan.id}", "/jobs", "/models", "/sweeps", "/profiles", f"/?model={name}"):
            page = service.admin.get(path, headers={"Accept": "text/html"})
            assert page.status_code == 200, path
            assert "<script>alert" not in page.text
            assert "<img src=x" not in page.text
            assert "unsafe" not in page.headers["content-security-policy"]
            shown += "&lt;script&gt;alert" in page.text or "\\u003cscript\\u003ealert" in page.text
        assert shown >= 2


class TestCursorsAndIds:
    @pytest.mark.parametrize("listed", ["plans", "profiles", "jobs", "sweeps"])
    def test_forged_cursors(self, service: Guests, listed: str) -> None:
        forged = [
            b"-1", b"9" * 400, b"1e9", b"NaN", b"null", b"[]", b"[1]", b'["a", 1]', b'["' + b"x" * 300 + b'", 1]', b"{}",
            b"[1e999, 1]", b"[null, null]", b"[true, 1]", b"[9223372036854775808, 9223372036854775808]", b"\xff\xfe",
        ]  # fmt: skip
        for raw in (*(base64.urlsafe_b64encode(text).decode() for text in forged), "", "%", "=", "ä", "x" * 30_000):
            answer = service.reader.get(f"/v1/{listed}", params={"cursor": raw})
            assert answer.status_code in (200, 422), (raw[:60], answer.text)

    @pytest.mark.parametrize("name", ["%00", "..%2f..%2fetc%2fpasswd", "%25", "_", "'", '"; --', "x" * 5000, "\U0001f4a9"])
    def test_ids_that_are_none(self, service: Guests, name: str) -> None:
        for path in ("plans", "profiles", "jobs", "sweeps", "keys"):
            method = "DELETE" if path == "keys" else "GET"
            answer = service.admin.request(method, f"/v1/{path}/{name}")
            assert answer.status_code in (400, 404, 405, 422), (path, answer.text)
        plan = service.planner.post("/v1/plans", json=PLAN).json()["id"]
        answer = service.reader.get(f"/v1/plans/{plan}/exports/bitplan/{name}")
        assert answer.status_code in (400, 404), answer.text

    @pytest.mark.parametrize("event", ["-1", "x", "9" * 5000, "1e3", ""])
    def test_event_ids_that_are_none(self, service: Guests, event: str) -> None:
        job = service.planner.post("/v1/profiles", json={"model": "x/events", "seed": 1}).json()
        service.admin.post(f"/v1/jobs/{job['id']}/cancel")
        answer = service.reader.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": event})
        assert answer.status_code in (200, 422)


class TestHeaders:
    @pytest.mark.parametrize("given", ["a\tb", "x" * 65, "a b", "<script>", "ä", ""])
    def test_a_request_id_that_is_none_is_replaced(self, service: Guests, given: str) -> None:
        answer = service.nobody.get("/healthz", headers={b"X-Request-ID": given.encode("latin-1")})
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 32
        assert service.nobody.get("/healthz", headers={"X-Request-ID": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"

    def test_nothing_sent_becomes_a_header_of_the_answer(self, service: Guests) -> None:
        evil = "x\r\nSet-Cookie: stolen=1"
        answers = [
            service.reader.get("/v1/plans", params={"model": evil, "limit": 1}),
            service.reader.get("/v1/inventory", params={"model": evil}),
            service.planner.post("/v1/plans", json={**PLAN, "model": evil}),
            service.nobody.get("/login", params={"next": evil}),
            service.nobody.get(f"/jobs?x={quote(evil)}", headers={"Accept": "text/html"}),
        ]
        for answer in answers:
            assert "stolen" not in str(answer.headers.get("set-cookie", ""))

    def test_links_do_not_repeat_the_host_of_the_request(self, service: Guests) -> None:
        for seed in (1, 2):
            service.planner.post("/v1/profiles", json={"model": "x/links", "seed": seed})
        answer = service.reader.get("/v1/jobs", params={"limit": 1}, headers={"Host": "evil.example"})
        assert answer.headers["link"].startswith("</v1/jobs?")

    def test_every_answer_forbids_what_browsers_might_do(self, service: Guests) -> None:
        for path in ("/healthz", "/v1/plans", "/nowhere", "/login", "/openapi.json"):
            headers = service.reader.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "access-control-allow-origin" not in headers
        preflight = service.nobody.options("/v1/plans", headers={"Origin": "http://x", "Access-Control-Request-Method": "POST"})
        assert "access-control-allow-origin" not in preflight.headers

    @pytest.mark.parametrize(
        "cookie", ["bitplan_session=forged", "bitplan_session=" + "x" * 4000, 'bitplan_session="\\377"', "=;"]
    )
    def test_forged_cookies(self, service: Guests, cookie: str) -> None:
        assert service.nobody.get("/v1/plans", headers={"Cookie": cookie}).status_code == 401
        assert service.nobody.delete("/session", headers={"Cookie": cookie}).status_code == 204


class TestBodies:
    def test_a_body_of_100_mb_is_refused_before_it_is_read(self, service: Guests) -> None:
        sent = 0

        def pieces() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(100):
                sent += 1 << 20
                yield b" " * (1 << 20)

        for headers in (JSON, {**JSON, "content-length": str(100 << 20)}):
            answer = asyncio.run(_streamed(service, headers, pieces))
            assert answer == 413
        assert sent <= 4 << 20

    @pytest.mark.parametrize("length", ["-1", "x", "1e3", "٣", "9" * 40, " "])
    def test_lengths_that_are_none(self, service: Guests, length: str) -> None:
        headers = {b"content-type": b"application/json", b"content-length": length.encode()}
        assert service.planner.post("/v1/plans", content=b"{}", headers=headers).status_code in (400, 413, 422)

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b"[]", b"null", b"\xff\xfe{", b'{"model": NaN}', b"[" * 100_000, b'{"a":' * 50_000,
            b'{"model": "m", "budget": "25%", "latency_ms": NaN}', b'{"model": "m", "budget": "25%", "latency_ms": 1e999}',
            b'{"model": "m", "budget": "25%", "seed": 1' + b"0" * 5000 + b"}",
        ],
    )  # fmt: skip
    def test_bodies_that_are_none(self, service: Guests, body: bytes) -> None:
        for path in ("/v1/plans", "/v1/profiles", "/v1/sweeps", "/v1/keys", "/session"):
            answer = service.admin.post(path, content=body, headers=JSON)
            assert answer.status_code in (400, 422), (path, answer.text[:200])
            assert answer.json()["detail"]


async def _streamed(service: Guests, headers: dict[str, str], pieces: Any) -> int:
    """The status of a POST whose body is drawn piece by piece, straight from the application."""
    body, statuses = pieces(), []
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    key = f"Bearer {service.secrets['planner']}".encode()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/plans", "raw_path": b"/v1/plans", "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"testserver"), (b"authorization", key), *raw], "server": ("testserver", 80), "client": ("c", 1),
        "http_version": "1.1", "root_path": "", "state": {}, "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(body), "more_body": True}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await service.app(scope, receive, send)
    (status,) = statuses
    return int(status)


@contextlib.contextmanager
def on_a_socket(service: Guests) -> Iterator[tuple[str, int]]:
    """The service as `bitplan serve` puts it on a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_config(service.app, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


class TestSockets:
    """Slow and broken callers, over a real socket; patience is cut to a fraction of a second here."""

    def test_whoever_dawdles_is_cut_off_and_others_are_served(self, service: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.4)
        monkeypatch.setattr(guard, "BODY_SECONDS", 0.4)
        key = service.secrets["planner"]
        head = f"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        beginnings = [
            "",
            "GET / HT",
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
            head + "Content-Length: 100\r\n\r\n{",
            head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        ]
        with on_a_socket(service) as address, contextlib.ExitStack() as stack:
            slow = [stack.enter_context(socket.create_connection(address)) for _ in range(10) for _ in beginnings]
            for connection, beginning in zip(slow, beginnings * 10, strict=True):
                connection.sendall(beginning.encode())
            with socket.create_connection(address) as quick:
                quick.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert _until_closed(quick).startswith(b"HTTP/1.1 200")
            ends = [_until_closed(connection) for connection in slow]
        for beginning, end in zip(beginnings * 10, ends, strict=True):
            assert end == b"" if "POST" not in beginning else end.startswith(b"HTTP/1.1 408"), (beginning, end)

    def test_a_second_request_may_come_late_but_not_slowly(self, service: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.4)
        with on_a_socket(service) as address, socket.create_connection(address) as connection:
            for _ in range(2):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                reader = h11.Connection(h11.CLIENT)
                reader.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
                reader.send(h11.EndOfMessage())
                while type(event := reader.next_event()) is not h11.EndOfMessage:
                    if event is h11.NEED_DATA:
                        reader.receive_data(connection.recv(4096))
            connection.sendall(b"GET /hea")
            assert _until_closed(connection) == b""

    def test_a_head_is_short_however_it_arrives(self, service: Guests) -> None:
        start, line = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"X-Long: " + b"x" * 8000
        with on_a_socket(service) as address:
            with socket.create_connection(address) as connection:
                connection.sendall(start + b"\r\n".join([line] * 5) + b"\r\n\r\n")
                assert _until_closed(connection).startswith(b"HTTP/1.1 400")
            with socket.create_connection(address) as connection:
                connection.settimeout(0.05)
                connection.sendall(start)
                for sent in range(100):
                    try:
                        connection.sendall(line[:-1] if sent else b"X-Endless: ")
                        connection.recv(4096)
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        pass
                    break
                assert sent < 20

    def test_what_is_no_http_is_refused(self, service: Guests) -> None:
        junk = [
            b"\x16\x03\x01\x02\x00",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
            b"POST /session HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n",
        ]
        with on_a_socket(service) as address:
            for raw in (*junk, b"POST /session HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"):
                with socket.create_connection(address) as connection:
                    connection.sendall(raw + b"\r\n")
                    assert _until_closed(connection).startswith(b"HTTP/1.1 4")


def _until_closed(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def test_five_hundred_random_requests(tmp_path: Path) -> None:
    with fuzz.fuzzed_service(tmp_path / "home") as service:
        done = fuzz.fuzz(service.app, examples=17, seed=20261122, phases=("examples", "fuzzing", "stateful"))
    assert dict(done.failures) == {}
    described = json.loads(service.nobody.get("/openapi.json").text)["paths"]
    assert len(done.operations) == sum(len(item) for item in described.values())
    assert done.requests >= 500
    assert done.phases["stateful"] > 0
    assert {200, 201, 202, 204, 404, 422} <= set(done.statuses)
