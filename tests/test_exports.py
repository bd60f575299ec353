"""Exports over HTTP: written by a job, listed when whole, downloaded in any pieces, and nothing else is ever read."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as checked
from hypothesis import strategies as st

import fakes
from bitplan.api.app import create_app
from bitplan.api.exporting import export_folder
from bitplan.api.routes.exports import _part
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from bitplan.api.store.artifacts import Artifacts
from hands import do

WEIGHTS = bytes(range(256)) * 40
FORBIDDEN = [
    *("%2E%2E/%2E%2E/%2E%2E/bitplan.db", "..%2F..%2F..%2Fbitplan.db", "/etc/passwd", "%2Fetc%2Fpasswd"),
    *("parts/%2E%2E/config.json", "%2E/config.json", "parts%5C..%5Cconfig.json", "config.json%00"),
    *("parts", "", "config.json/", ".hidden"),
]


@pytest.fixture
def plan_id(store: Store, settings: Settings) -> str:
    """A plan with an export of two files, one in a folder of its own."""
    plan = fakes.plan("25%")
    store.put_plan(plan)
    folder = settings.home / export_folder(plan.id, "bitplan")
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "mödel 1.bin").write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "empty").touch()
    return plan.id


@pytest.fixture
def url(plan_id: str) -> str:
    return f"/v1/plans/{plan_id}/exports/bitplan/parts/m%C3%B6del%201.bin"


class TestJobs:
    def test_an_export_is_a_job_and_then_a_list_of_files(self, http: TestClient, store: Store, settings: Settings) -> None:
        plan = fakes.plan("25%")
        store.put_plan(plan)
        address = f"/v1/plans/{plan.id[:12]}/exports"
        assert http.get(address).json() == {"items": [], "next_cursor": None}
        asked = http.post(address, json={"to": "bitplan"})
        assert (asked.status_code, asked.json()["kind"]) == (202, "execute")
        assert asked.json()["input"] == {"plan_id": plan.id, "to": "bitplan"}
        assert http.post(address, json={}).headers["location"] == asked.headers["location"]
        do(store.jobs.get(asked.json()["id"]), store, settings)
        (ready,) = http.get(address).json()["items"]
        (file,) = ready["files"]
        assert http.get(f"{ready['href']}/{file['path']}").content == plan.to_json().encode()
        assert file["bytes"] == ready["bytes"] == len(plan.to_json().encode())

    @pytest.mark.parametrize(
        ("body", "slug"), [({"to": "guff"}, "unknown-name"), ({"to": ""}, "invalid-body"), ({"too": "x"}, "invalid-body")]
    )
    def test_what_cannot_be_written_is_refused(self, http: TestClient, plan_id: str, body: dict[str, str], slug: str) -> None:
        refused = http.post(f"/v1/plans/{plan_id}/exports", json=body)
        assert (refused.status_code, refused.json()["type"]) == (422, f"/problems/{slug}")
        assert http.get("/v1/jobs").json()["items"] == []

    def test_a_plan_that_is_not_there_has_no_exports(self, http: TestClient) -> None:
        assert http.get("/v1/plans/0123/exports").status_code == 404
        assert http.post("/v1/plans/0123/exports", json={}).status_code == 404
        assert http.get("/v1/plans/0123/exports/bitplan/x").status_code == 404


class TestDownloads:
    def test_a_file_comes_whole_with_its_name_and_size(self, http: TestClient, url: str) -> None:
        reply = http.get(url)
        assert (reply.status_code, reply.content) == (200, WEIGHTS)
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["content-length"] == str(len(WEIGHTS))
        assert reply.headers["accept-ranges"] == "bytes"
        assert reply.headers["content-disposition"] == "attachment; filename*=UTF-8''m%C3%B6del%201.bin"
        cached = http.get(url, headers={"If-None-Match": f'"other", {reply.headers["etag"]}'})
        assert (cached.status_code, cached.content) == (304, b"")
        empty = http.get(f"{url.rpartition('/parts')[0]}/empty", headers={"Range": "bytes=0-"})
        assert (empty.status_code, empty.content) == (200, b"")

    def test_a_part_is_that_part(self, http: TestClient, url: str) -> None:
        size = len(WEIGHTS)
        parts = {"0-0": (0, 0), "100-199": (100, 199), "10000-": (10000, size - 1), "-40": (size - 40, size - 1)}
        parts |= {f"{size - 1}-99999": (size - 1, size - 1), "-99999": (0, size - 1)}
        for wanted, (first, last) in parts.items():
            reply = http.get(url, headers={"Range": f"bytes={wanted}"})
            assert (reply.status_code, reply.content) == (206, WEIGHTS[first : last + 1])
            assert reply.headers["content-range"] == f"bytes {first}-{last}/{size}"
            assert reply.headers["content-length"] == str(last + 1 - first)

    def test_a_range_that_means_nothing_is_ignored(self, http: TestClient, url: str) -> None:
        for wanted in ("bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=x-", "bytes"):
            assert http.get(url, headers={"Range": wanted}).status_code == 200

    def test_a_range_beyond_the_end_is_refused(self, http: TestClient, url: str) -> None:
        for wanted in ("bytes=10240-", "bytes=99999-100000", "bytes=-0"):
            reply = http.get(url, headers={"Range": wanted})
            assert (reply.status_code, reply.headers["content-range"]) == (416, f"bytes */{len(WEIGHTS)}")
            assert reply.headers["content-type"] == "application/problem+json"

    def test_a_part_of_another_version_is_not_sent(self, http: TestClient, url: str) -> None:
        tag = http.get(url).headers["etag"]
        asked = {"Range": "bytes=5-"}
        assert http.get(url, headers={**asked, "If-Range": tag}).status_code == 206
        assert http.get(url, headers={**asked, "If-Range": '"another"'}).content == WEIGHTS

    @given(st.integers(0, 30), st.integers(0, 40), st.integers(1, 30))
    def test_every_range_is_a_slice(self, first: int, last: int, size: int) -> None:
        content = list(range(size))
        found = _part(f"bytes={first}-{last}", size)
        if first > last:
            assert found is None
        elif first < size:
            assert found is not None
            assert content[found[0] : found[1] + 1] == content[first : last + 1]
        else:
            assert found is not None
            assert found[0] >= size

    def test_nothing_but_the_files_of_the_list_is_read(
        self, http: TestClient, plan_id: str, settings: Settings, tmp_path: Path
    ) -> None:
        (settings.home / export_folder(plan_id, "bitplan") / ".hidden").write_text("secret")
        for path in FORBIDDEN:
            reply = http.get(f"/v1/plans/{plan_id}/exports/bitplan/{path}")
            assert 400 <= reply.status_code < 500, path
            assert b"secret" not in reply.content

    @pytest.mark.parametrize("path", ["link", "linked/secret"])
    def test_links_lead_nowhere(self, http: TestClient, plan_id: str, settings: Settings, tmp_path: Path, path: str) -> None:
        folder = settings.home / export_folder(plan_id, "bitplan")
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret").write_text("secret")
        (folder / "linked").symlink_to(tmp_path / "outside")
        (folder / "link").symlink_to(tmp_path / "outside" / "secret")
        reply = http.get(f"/v1/plans/{plan_id}/exports/bitplan/{path}")
        assert 400 <= reply.status_code < 500
        assert b"secret" not in reply.content

    @checked(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
    @given(to=st.sampled_from(["bitplan", "..", "%2e%2e", "gguf"]), path=st.text(max_size=20))
    def test_no_path_breaks_the_service(self, http: TestClient, plan_id: str, to: str, path: str) -> None:
        from urllib.parse import quote

        assert http.get(f"/v1/plans/{plan_id}/exports/{to}/{quote(path)}").status_code in (200, 400, 404, 422)


class TestElsewhere:
    def test_published_exports_carry_their_digest(
        self, settings: Settings, tmp_path: Path, plan_id: str, http: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The artifacts lie under a root of their own, and this machine has no copy."""
        root = tmp_path / "artifacts"
        folder = export_folder(plan_id, "bitplan")
        Artifacts(root).publish(folder, settings.home)
        monkeypatch.setenv("BITPLAN_ARTIFACTS", str(root))
        elsewhere = Settings.from_environment(tmp_path / "other-home", settings.database_url)
        with TestClient(create_app(elsewhere)) as other:
            (ready,) = other.get(f"/v1/plans/{plan_id}/exports").json()["items"]
            sizes: dict[str, Any] = {file["path"]: file["bytes"] for file in ready["files"]}
            assert sizes == {"config.json": 2, "empty": 0, "parts/mödel 1.bin": len(WEIGHTS)}
            whole = other.get(f"{ready['href']}/parts/mödel 1.bin")
            digest = f"sha-256=:{base64.b64encode(hashlib.sha256(WEIGHTS).digest()).decode()}:"
            assert whole.content == WEIGHTS
            assert (whole.headers["repr-digest"], whole.headers["content-digest"]) == (digest, digest)
            part = other.get(f"{ready['href']}/parts/mödel 1.bin", headers={"Range": "bytes=7-9"})
            assert part.content == WEIGHTS[7:10]
            assert part.headers["repr-digest"] == digest
            assert "content-digest" not in part.headers
