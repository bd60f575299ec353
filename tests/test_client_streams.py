"""What arrives in pieces: events of a job and files of an export, over connections that break. See talks.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.allocator.errors import BitplanError, UsageError
from bitplan.api.client import exports as export_verbs
from bitplan.api.client import jobs as job_verbs
from bitplan.api.client.exports import BARREN
from bitplan.api.client.talk import Ask
from talks import Performer, job_state, script, streamed

LOST = httpx2.ReadError("the connection broke")


def event(version: int, status: str = "running") -> bytes:
    return f"event: state\ndata: {json.dumps(job_state(version, status), ensure_ascii=False)}\nid: {version}\n\n".encode()


class TestEvents:
    @given(st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from(["\n", "\r\n"]))
    def test_pieces_of_any_size_carry_the_same_events(self, cuts: list[int], newline: str) -> None:
        whole = b": hello\n\n" + event(1) + b":\n\n" + event(2) + event(3, "succeeded")
        whole = whole.replace(b"\n", newline.encode())
        places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
        pieces = [whole[a:b] for a, b in pairwise(places)]
        performer = Performer(script(streamed(pieces)))
        performer.run(job_verbs.events("job_1"))
        assert [(job.version, job.status, job.input["model"]) for job in performer.given] == [
            (1, "running", "ä\n€"), (2, "running", "ä\n€"), (3, "succeeded", "ä\n€")
        ]  # fmt: skip

    def test_a_broken_connection_goes_on_after_the_last_whole_event(self) -> None:
        half = event(3)[:-7]
        performer = Performer(
            script(
                streamed([event(1), event(2) + half, LOST]),
                httpx2.Response(200, json=job_state(3)),
                httpx2.ConnectError("refused"),
                streamed([event(3), event(4, "succeeded")]),
            )
        )
        performer.run(job_verbs.events("job_1"))
        assert [job.version for job in performer.given] == [1, 2, 3, 4]
        opened = [ask.headers.get("Last-Event-ID") for ask in performer.asked if ask.path.endswith("events")]
        assert opened == [None, "2", "2"]

    def test_an_event_that_comes_twice_is_given_once(self) -> None:
        running = httpx2.Response(200, json=job_state(2))
        performer = Performer(script(streamed([event(1), event(2)]), running, streamed([event(2), event(3, "failed")])))
        performer.run(job_verbs.events("job_1"))
        assert [job.version for job in performer.given] == [1, 2, 3]

    def test_an_end_that_was_missed_is_asked_for(self) -> None:
        performer = Performer(script(streamed([event(1), LOST]), httpx2.Response(200, json=job_state(5, "canceled"))))
        performer.run(job_verbs.events("job_1"))
        assert [(job.version, job.status) for job in performer.given] == [(1, "running"), (5, "canceled")]

    def test_a_job_that_is_not_there_is_an_error_at_once(self) -> None:
        missing = httpx2.Response(404, json={"type": "/problems/not-found", "title": "no", "status": 404, "detail": "no job"})
        with pytest.raises(BitplanError, match="no job"):
            Performer(script(missing)).run(job_verbs.events("job_1"))


class Exporter:
    """A service with one export. `breaks` says after how many bytes of the file the connection of each download breaks."""

    def __init__(self, content: bytes, breaks: list[int], digest: bool = True, name: str = "deep/model.safetensors") -> None:
        self.content, self.breaks, self.digest, self.name = content, breaks, digest, name
        self.ranges: list[str | None] = []

    def __call__(self, ask: Ask) -> httpx2.Response | Exception:
        if ask.path.endswith("/exports"):
            files = [{"path": "empty", "bytes": 0}, {"path": self.name, "bytes": len(self.content)}]
            found = {"to": "bitplan", "files": files, "bytes": len(self.content), "href": "/files"}
            return httpx2.Response(200, json={"items": [found]})
        assert ask.path == "/files/deep/model.safetensors"
        wanted = ask.headers.get("Range")
        self.ranges.append(wanted)
        tag = hashlib.sha256(self.content).hexdigest()
        if ask.headers.get("If-Range", tag) != tag:
            wanted = None
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
        headers = {"etag": tag}
        if self.digest:
            headers["repr-digest"] = f"sha-256=:{base64.b64encode(hashlib.sha256(self.content).digest()).decode()}:"
        return streamed(self._pieces(start), 206 if wanted else 200, **headers)

    def _pieces(self, start: int) -> Iterator[bytes | Exception]:
        stop = self.breaks.pop(0) if self.breaks else len(self.content)
        for at in range(start, min(start + stop, len(self.content)), 3):
            yield self.content[at : min(at + 3, start + stop)]
        if start + stop < len(self.content):
            yield LOST


CONTENT = bytes(range(256)) * 3


class TestDownloads:
    @given(breaks=st.lists(st.integers(0, len(CONTENT)), max_size=6))
    def test_a_file_arrives_whole_however_often_the_connection_breaks(
        self, tmp_path_factory: pytest.TempPathFactory, breaks: list[int]
    ) -> None:
        folder = tmp_path_factory.mktemp("out") / "model"
        exporter = Exporter(CONTENT, list(breaks))
        arrived: list[tuple[int, int]] = []
        performer = Performer(exporter)
        performer.run(export_verbs.execute("p", folder, received=lambda done, total: arrived.append((done, total))))
        assert (folder / "deep" / "model.safetensors").read_bytes() == CONTENT
        assert (folder / "empty").read_bytes() == b""
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        assert arrived[-1] == (len(CONTENT), len(CONTENT))
        position, expected = 0, list[str | None]([None])
        for stop in breaks:
            position += stop
            if position >= len(CONTENT):
                break
            expected.append(f"bytes={position}-" if position else None)
        assert exporter.ranges == expected

    @pytest.mark.parametrize("digest", [True, False])
    @pytest.mark.parametrize("before", [0, 1, 400, len(CONTENT) - 1, len(CONTENT)])
    def test_what_an_earlier_call_brought_is_not_fetched_again(self, tmp_path: Path, before: int, digest: bool) -> None:
        part = tmp_path / ".model.part" / "deep" / "model.safetensors"
        part.parent.mkdir(parents=True)
        part.write_bytes(CONTENT[:before])
        exporter = Exporter(CONTENT, [], digest)
        Performer(exporter).run(export_verbs.execute("p", tmp_path / "model"))
        assert (tmp_path / "model" / "deep" / "model.safetensors").read_bytes() == CONTENT
        assert exporter.ranges == [f"bytes={min(before, len(CONTENT) - 1)}-" if before else None]

    def test_what_lay_there_of_another_version_is_fetched_again(self, tmp_path: Path) -> None:
        part = tmp_path / ".model.part" / "deep" / "model.safetensors"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * 100)
        exporter = Exporter(CONTENT, [])
        Performer(exporter).run(export_verbs.execute("p", tmp_path / "model"))
        assert (tmp_path / "model" / "deep" / "model.safetensors").read_bytes() == CONTENT
        assert exporter.ranges == ["bytes=100-", None]

    def test_a_file_that_changes_between_two_parts_is_of_one_version(self, tmp_path: Path) -> None:
        exporter = Exporter(CONTENT, [300], digest=False)
        changed = CONTENT[::-1]

        def service(ask: Ask) -> Any:
            answer = exporter(ask)
            if ask.path.startswith("/files") and len(exporter.ranges) == 1:
                exporter.content, original = changed, exporter.content
                pieces: list[bytes | Exception] = [original[:300], LOST]
                return streamed(pieces, etag=hashlib.sha256(original).hexdigest())
            return answer

        Performer(service).run(export_verbs.execute("p", tmp_path / "model"))
        assert (tmp_path / "model" / "deep" / "model.safetensors").read_bytes() == changed

    def test_damage_on_the_way_is_found(self, tmp_path: Path) -> None:
        exporter = Exporter(CONTENT, [])

        def service(ask: Ask) -> Any:
            answer = exporter(ask)
            if not ask.path.startswith("/files"):
                return answer
            assert isinstance(answer, httpx2.Response)
            return streamed([b"y" * len(CONTENT)], etag=answer.headers["etag"], repr_digest=answer.headers["repr-digest"])

        with pytest.raises(BitplanError, match="damaged twice"):
            Performer(service).run(export_verbs.execute("p", tmp_path / "model"))
        assert not (tmp_path / "model").exists()

    def test_a_service_that_sends_nothing_more_is_given_up(self, tmp_path: Path) -> None:
        exporter = Exporter(CONTENT, [500, *[0] * 100])
        performer = Performer(exporter)
        with pytest.raises(BitplanError, match=f"{len(CONTENT)} bytes, but the service sends 500"):
            performer.run(export_verbs.execute("p", tmp_path / "model"))
        assert len(exporter.ranges) == 1 + BARREN + 1

    @pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../up", "", "a\\..\\up"])
    def test_a_service_cannot_write_outside_the_folder(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BitplanError, match="outside its export"):
            Performer(Exporter(CONTENT, [], name=name)).run(export_verbs.execute("p", tmp_path / "model"))
        assert not (tmp_path / "up").exists()
        assert not (tmp_path / "model").exists()

    def test_a_folder_that_is_taken_is_refused_before_anything_is_asked(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        performer = Performer(script())
        with pytest.raises(UsageError, match="not an empty folder"):
            performer.run(export_verbs.execute("p", tmp_path))
        assert performer.asked == []
