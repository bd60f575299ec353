"""Who may do what: keys, scopes, sessions of browsers, rates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import guests
from bitplan.allocator import UsageError
from bitplan.api.limiting import Limiter
from bitplan.api.settings import Settings
from bitplan.api.store.tables import KeyRow, SessionRow, timestamp
from guests import MODEL, Guests

PLAN = {"model": MODEL, "budget": "25%"}
LATER = {"model": "someone/else", "budget": "25%"}  # becomes a job


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    with guests.invited(tmp_path_factory.mktemp("keys") / "home") as found:
        yield found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    with guests.invited(tmp_path_factory.mktemp("local") / "home", require_keys=False) as found:
        yield found


class TestWhoIsLetIn:
    def test_every_described_route_takes_a_key_but_for_those_that_are_open(self, service: Guests) -> None:
        opened = set()
        paths = service.app.openapi()["paths"]
        for path, item in paths.items():
            for method in item:
                answer = service.nobody.request(method, re.sub(r"\{\w+\}", "x", path))
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    assert answer.json()["type"] == "/problems/unauthenticated"
                else:
                    opened.add(path)
        assert opened == {"/healthz", "/readyz", "/version", "/session", "/problems/{name}"} & set(paths)

    def test_pages_send_a_browser_to_sign_in_and_back(self, service: Guests) -> None:
        for path in ("/", "/jobs?status=failed"):
            sent = service.nobody.get(path, headers={"Accept": "text/html"})
            assert sent.status_code == 303
            page = service.nobody.get(sent.headers["location"])
            assert page.status_code == 200
            assert f'value="{path}"' in page.text
        assert service.nobody.get("/").status_code == 401  # no browser

    @pytest.mark.parametrize(
        "authorization",
        ["Bearer bp_wrong", "Bearer", "bearer ", "Basic YTpi", "bp_wrong", "Bearer \xff", "Bearer " + "x" * 9000],
    )
    def test_what_is_no_key_is_refused_where_none_is_needed_too(self, service: Guests, authorization: str) -> None:
        answer = service.nobody.get("/v1/plans", headers={b"Authorization": authorization.encode("latin-1")})
        assert answer.status_code == 401

    def test_an_expired_or_revoked_key_is_no_key(self, service: Guests) -> None:
        for change in ({"expires_at": timestamp(1.0)}, {"revoked_at": timestamp()}):
            key, secret = service.store.keys.create("past", "read")
            headers = {"Authorization": f"Bearer {secret}"}
            assert service.nobody.get("/v1/plans", headers=headers).status_code == 200
            with service.store.database.write() as session:
                row = session.query(KeyRow).where(KeyRow.id == key.id).one()
                for name, value in change.items():
                    setattr(row, name, value)
            assert service.nobody.get("/v1/plans", headers=headers).status_code == 401

    def test_the_scheme_is_written_in_any_case(self, service: Guests) -> None:
        headers = {"Authorization": f"bEaReR  {service.secrets['reader']}"}
        assert service.nobody.get("/v1/plans", headers=headers).status_code == 200


class TestScopes:
    def test_each_may_do_what_its_scope_says(self, service: Guests) -> None:
        plan = service.planner.post("/v1/plans", json=PLAN).json()["id"]
        asked = [
            ("GET", "/v1/plans", None, "read"),
            ("GET", f"/v1/inventory?model={MODEL}", None, "read"),
            ("GET", "/v1/inventory?model=someone/never-seen", None, "plan"),
            ("GET", "/metrics", None, "read"),
            ("POST", "/v1/plans", PLAN, "plan"),
            ("POST", "/v1/profiles", {"model": MODEL}, "plan"),
            ("POST", f"/v1/plans/{plan}/verify", None, "plan"),
            ("GET", "/v1/keys", None, "admin"),
            ("POST", "/v1/keys", {"name": "new"}, "admin"),
            ("DELETE", "/v1/keys/none", None, "admin"),
            ("DELETE", f"/v1/plans/{plan}", None, "admin"),
        ]
        order = ["read", "plan", "admin"]
        for method, path, body, needed in asked:
            for client, scope in ((service.reader, "read"), (service.planner, "plan"), (service.admin, "admin")):
                answer = client.request(method, path, json=body)
                if order.index(scope) < order.index(needed):
                    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden"), (method, path, scope)
                    assert "it takes 'plan'" in answer.json()["detail"] or "it takes 'admin'" in answer.json()["detail"]
                else:
                    assert answer.status_code in (200, 201, 202, 204, 404), (method, path, scope, answer.text)

    def test_a_job_is_its_owners_to_cancel_and_everybodys_to_see(self, service: Guests) -> None:
        job = service.planner.post("/v1/plans", json=LATER).json()
        assert job["owner"] == "planner"
        assert service.reader.get(f"/v1/jobs/{job['id']}").json()["owner"] == "planner"
        for stranger in (service.reader, service.other):
            refused = stranger.post(f"/v1/jobs/{job['id']}/cancel")
            assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")
        assert service.planner.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
        job = service.planner.post("/v1/plans", json={**LATER, "seed": 1}).json()
        assert service.admin.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202

    def test_the_replies_to_one_key_are_not_anothers(self, service: Guests) -> None:
        headers = {"Idempotency-Key": "the same word"}
        mine = service.planner.post("/v1/plans", json={**LATER, "seed": 2}, headers=headers)
        theirs = service.other.post("/v1/plans", json={**LATER, "seed": 3}, headers=headers)
        assert (mine.status_code, theirs.status_code) == (202, 202)
        assert mine.json()["id"] != theirs.json()["id"]


class TestKeysOverHttp:
    def test_a_secret_is_shown_once_and_stored_nowhere(self, service: Guests) -> None:
        made = service.admin.post("/v1/keys", json={"name": "ci", "scope": "plan", "days": 1})
        assert made.status_code == 201
        secret = made.json()["secret"]
        assert re.fullmatch(r"bp_[\w-]{43}", secret)
        assert made.headers["cache-control"] == "no-store"
        listed = service.admin.get("/v1/keys")
        assert secret not in listed.text
        assert made.json()["id"] in listed.text
        for file in service.settings.home.glob("bitplan*"):
            assert secret.encode() not in file.read_bytes()
        headers = {"Authorization": f"Bearer {secret}"}
        assert service.nobody.post("/v1/plans", json=PLAN, headers=headers).status_code in (200, 201)
        revoked = service.admin.delete(f"/v1/keys/{made.json()['id']}")
        assert revoked.json()["revoked"] is True
        assert service.nobody.get("/v1/plans", headers=headers).status_code == 401

    @pytest.mark.parametrize("name", ["", " ", "local", "a\nb", "a\0b", "n" * 101])
    def test_what_is_no_name(self, service: Guests, name: str) -> None:
        assert service.admin.post("/v1/keys", json={"name": name}).status_code == 422


class TestSessions:
    def sign_in(self, service: Guests, name: str) -> TestClient:
        browser = TestClient(service.app, follow_redirects=False)
        sent = browser.post("/session", data={"key": service.secrets[name], "next": "/jobs"})
        assert (sent.status_code, sent.headers["location"]) == (303, "/jobs")
        return browser

    def test_a_browser_signs_in_looks_and_signs_out(self, service: Guests) -> None:
        browser = self.sign_in(service, "reader")
        cookie = browser.post("/session", json={"key": service.secrets["reader"]}).headers["set-cookie"]
        for word in ("HttpOnly", "SameSite=strict", "Max-Age=43200", "Path=/"):
            assert word in cookie
        assert "Secure" not in cookie
        assert service.secrets["reader"] not in cookie
        assert browser.get("/v1/plans").status_code == 200
        assert browser.post("/v1/plans", json=PLAN).status_code == 403
        token = browser.cookies["bitplan_session"]
        assert browser.delete("/session").status_code == 204
        browser.cookies.set("bitplan_session", token)
        assert browser.get("/v1/plans").status_code == 401

    def test_over_https_the_cookie_is_secure(self, service: Guests) -> None:
        browser = TestClient(service.app, base_url="https://testserver")
        assert "Secure" in browser.post("/session", json={"key": service.secrets["reader"]}).headers["set-cookie"]

    def test_other_sites_cannot_write_with_the_cookie(self, service: Guests) -> None:
        browser = self.sign_in(service, "planner")
        for origin in ("https://elsewhere.example", "null", "http://testserver.elsewhere.example", "http://testserver:81"):
            refused = browser.post("/v1/plans", json=PLAN, headers={"Origin": origin})
            assert (refused.status_code, refused.json()["type"]) == (403, "/problems/foreign-origin")
        assert browser.post("/v1/plans", json=PLAN, headers={"Origin": "http://testserver"}).status_code in (200, 201)

    def test_a_session_ends_with_time_and_with_its_key(self, service: Guests) -> None:
        browser = self.sign_in(service, "reader")
        with service.store.database.write() as session:
            session.query(SessionRow).update({"expires_at": timestamp(1.0)})
        assert browser.get("/v1/plans").status_code == 401
        key, secret = service.store.keys.create("short", "read")
        browser.post("/session", json={"key": secret})
        assert browser.get("/v1/plans").status_code == 200
        service.store.keys.revoke(key.id)
        assert browser.get("/v1/plans").status_code == 401

    def test_only_a_hash_of_the_token_is_stored(self, service: Guests) -> None:
        token = self.sign_in(service, "reader").cookies["bitplan_session"]
        assert service.store.sessions.key_id(token) is not None
        for file in service.settings.home.glob("bitplan*"):
            assert token.encode() not in file.read_bytes()

    def test_a_wrong_key_says_so(self, service: Guests) -> None:
        assert service.nobody.post("/session", json={"key": "bp_wrong"}).status_code == 401
        page = service.nobody.post("/session", data={"key": "bp_wrong", "next": "/jobs"})
        assert page.status_code == 401
        assert "unknown, expired or revoked" in page.text
        assert 'value="/jobs"' in page.text
        assert service.nobody.post("/session", content="x", headers={"Content-Type": "text/plain"}).status_code == 415
        for body in ("{", "[]", '{"key": 3}', '{"keys": "x"}'):
            answer = service.nobody.post("/session", content=body, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body")

    @pytest.mark.parametrize("place", ["//elsewhere.example", "/\\elsewhere.example", "https://elsewhere.example", "/a\r\nX: y"])
    def test_nobody_is_sent_elsewhere(self, service: Guests, place: str) -> None:
        sent = service.nobody.post("/session", data={"key": service.secrets["reader"], "next": place})
        assert sent.headers["location"] == "/"
        assert "x" not in sent.headers
        service.nobody.cookies.clear()


class TestRates:
    def test_a_key_that_sends_too_much_waits_and_others_do_not(self, tmp_path: Path) -> None:
        with guests.invited(tmp_path / "home", rate="3/hour") as service:
            answers = [service.reader.get("/v1/metrics") for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert answers[3].json()["type"] == "/problems/rate-limited"
            assert 0 < int(answers[3].headers["retry-after"]) <= 3600
            assert service.planner.get("/v1/metrics").status_code == 200
            assert service.nobody.get("/healthz").status_code == 200

    def test_the_machines_owner_has_a_limit_only_when_one_is_set(self, tmp_path: Path) -> None:
        settings = Settings(tmp_path, "sqlite:///x")
        assert not any(Limiter(settings).seconds_to_wait(None) for _ in range(1000))
        limiter = Limiter(Settings(tmp_path, "sqlite:///x", rate="2/minute"))
        assert [limiter.seconds_to_wait(None) > 0 for _ in range(3)] == [False, False, True]

    def test_a_rate_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="BITPLAN_RATE='often' is no rate; write a number per unit of time"):
            Limiter(Settings(tmp_path, "sqlite:///x", rate="often"))


class TestWithoutKeys:
    """A service on loopback, which needs none."""

    def test_its_owner_may_do_everything(self, local: Guests) -> None:
        job = local.nobody.post("/v1/plans", json=LATER).json()
        assert job["owner"] == "local"
        assert local.nobody.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
        assert local.nobody.get("/v1/keys").status_code == 200

    def test_a_key_counts_where_it_is_shown(self, local: Guests) -> None:
        assert local.reader.post("/v1/plans", json=PLAN).status_code == 403
        assert local.nobody.get("/v1/plans", headers={"Authorization": "Bearer bp_wrong"}).status_code == 401
        local.nobody.cookies.set("bitplan_session", "stale")  # cookies of all ports of a host are one
        assert local.nobody.get("/v1/plans").status_code == 200
        local.nobody.cookies.clear()

    def test_a_name_that_leads_here_is_not_enough(self, local: Guests) -> None:
        """A page of another site whose name was pointed at 127.0.0.1 would be let in by its origin."""
        for host in ("rebound.example", "127.0.0.1.example", "localhost.example:80", "", "[::1", "10.0.0.1"):
            refused = local.nobody.get("/v1/plans", headers={"Host": host})
            assert (refused.status_code, refused.json()["type"]) == (403, "/problems/foreign-host"), host
        for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "app.localhost"):
            assert local.nobody.get("/v1/plans", headers={"Host": host}).status_code == 200


def test_the_log_never_holds_a_secret(service: Guests, capsys: pytest.CaptureFixture[str]) -> None:
    import io
    import logging

    from bitplan.api.logs import log, log_to

    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level, logging.getLogger("bitplan").level
    try:
        log_to(stream)
        service.planner.get("/v1/metrics", headers={"X-Request-ID": "abc"})
        log.info("a word", secret=service.secrets["admin"], url="postgresql://me:hush@host/db")
        try:
            raise ValueError(service.secrets["admin"])
        except ValueError:
            log.exception("failed")
        logging.getLogger("library").warning("%s", service.secrets["admin"])
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        logging.getLogger("bitplan").setLevel(before[2])
    written = stream.getvalue()
    assert service.secrets["admin"] not in written
    assert "hush" not in written
    lines = [json.loads(line) for line in written.splitlines()]
    request = next(line for line in lines if line["event"] == "request")
    wanted = {"request_id": "abc", "route": "/v1/metrics", "status": 200, "principal": "planner", "level": "info"}
    assert {name: request[name] for name in wanted} == wanted
    assert [line["event"] for line in lines[-3:-1]] == ["a word", "failed"]
    assert "ValueError: bp_..." in lines[-2]["exception"]
    assert capsys.readouterr().out == ""
