"""Artifacts: whole or not at all, the same bytes everywhere, and no way out of the root."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bitplan.allocator.errors import BitplanError, DiskFull, NotFound, StoreUnavailable, UsageError
from bitplan.api.store import artifacts as module
from bitplan.api.store.artifacts import Artifacts

FILES = {"config.json": b"{}", "model.safetensors": b"\x00\x01" * 40_000, "sub/empty": b"", "sub/more/deep.txt": b"deep"}
EXPORT = "exports/abc/bitplan"


@pytest.fixture(params=["folder", "file URL", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "shared artifacts"
    yield {"folder": str(folder), "file URL": folder.as_uri().replace("%20", " "), "memory": "memory://bitplan-tests"}[
        request.param
    ]
    memory = fsspec.filesystem("memory")
    if memory.exists("bitplan-tests"):
        memory.rm("bitplan-tests", recursive=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of whoever makes things: an export, and a rendering of one file."""
    return fill(tmp_path / "maker")


def fill(home: Path) -> Path:
    for name, content in FILES.items():
        (home / EXPORT / name).parent.mkdir(parents=True, exist_ok=True)
        (home / EXPORT / name).write_bytes(content)
    (home / "renderings").mkdir()
    (home / "renderings" / "unit.safetensors").write_bytes(b"weights")
    return home


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPublishing:
    def test_what_one_home_publishes_another_fetches(self, root: str, home: Path, tmp_path: Path) -> None:
        made, other = Artifacts(root), tmp_path / "other"
        assert not made.exists(EXPORT)
        assert not made.fetch(EXPORT, other)
        made.publish(EXPORT, home)
        made.publish("renderings/unit.safetensors", home)
        read = Artifacts(root)
        assert read.exists(EXPORT)
        assert read.fetch(EXPORT, other)
        assert read.fetch("renderings/unit.safetensors", other)
        assert contents(other) == contents(home)
        listed = {name: size for name, size, _ in read.files(EXPORT)}
        assert listed == {name: len(content) for name, content in FILES.items()}
        for name, content in FILES.items():
            with read.open(f"{EXPORT}/{name}") as file:
                file.seek(len(content) // 2)
                assert file.read() == content[len(content) // 2 :]
        assert [name for name, *_ in read.files("renderings/unit.safetensors")] == ["unit.safetensors"]
        with read.open("renderings/unit.safetensors") as file:
            assert file.read() == b"weights"

    def test_what_is_there_already_stays(self, root: str, home: Path, tmp_path: Path) -> None:
        made, other = Artifacts(root), tmp_path / "other"
        made.publish("renderings/unit.safetensors", home)
        (other / "renderings").mkdir(parents=True)
        (other / "renderings" / "unit.safetensors").write_bytes(b"mine")
        assert made.fetch("renderings/unit.safetensors", other)
        assert contents(other) == {"renderings/unit.safetensors": b"mine"}

    def test_one_content_is_kept_once_and_a_newer_artifact_replaces_the_older(
        self, root: str, home: Path, tmp_path: Path
    ) -> None:
        made = Artifacts(root)
        made.publish(EXPORT, home)
        (home / "again").mkdir()
        shutil.copy(home / EXPORT / "model.safetensors", home / "again" / "same.bin")
        made.publish("again", home)
        files, path = fsspec.url_to_fs(root)
        assert len(files.find(f"{path}/objects")) == len(FILES)
        (home / EXPORT / "config.json").write_bytes(b"{1}")
        made.publish(EXPORT, home)
        assert made.fetch(EXPORT, tmp_path / "other")
        assert (tmp_path / "other" / EXPORT / "config.json").read_bytes() == b"{1}"

    def test_publishing_what_is_not_there(self, root: str, home: Path) -> None:
        with pytest.raises(NotFound, match="nothing"):
            Artifacts(root).publish("exports/nothing", home)

    def test_deleting(self, root: str, home: Path, tmp_path: Path) -> None:
        made = Artifacts(root)
        made.publish(EXPORT, home)
        made.delete(EXPORT)
        made.delete(EXPORT)
        assert not made.exists(EXPORT)
        assert made.files(EXPORT) == []
        assert not made.fetch(EXPORT, tmp_path / "other")
        with pytest.raises(NotFound):
            made.open(f"{EXPORT}/config.json")

    def test_links_are_not_published(self, root: str, home: Path) -> None:
        (home / EXPORT / "passwords").symlink_to("/etc/passwd")
        with pytest.raises(UsageError, match="no plain file"):
            Artifacts(root).publish(EXPORT, home)
        assert not Artifacts(root).exists(EXPORT)


class TestHalfWay:
    def test_a_publisher_that_dies_leaves_nothing_to_be_seen(
        self, root: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At every single step of publishing: each content, and the manifest."""
        for step in range(len(FILES) + 1):
            fresh = f"{root}/{step}"
            with monkeypatch.context() as patched:
                die_at(patched, step)
                with pytest.raises(KeyboardInterrupt):
                    Artifacts(fresh).publish(EXPORT, home)
            seen = Artifacts(fresh)
            assert not seen.exists(EXPORT)
            assert not seen.fetch(EXPORT, tmp_path / "other")
            seen.publish(EXPORT, home)
            assert seen.fetch(EXPORT, tmp_path / f"other {step}")
            assert contents(tmp_path / f"other {step}") == {f"{EXPORT}/{name}": content for name, content in FILES.items()}

    def test_a_fetch_that_fails_leaves_nothing(self, root: str, home: Path, tmp_path: Path) -> None:
        made, other = Artifacts(root), tmp_path / "other"
        made.publish(EXPORT, home)
        files, path = fsspec.url_to_fs(root)
        place = max(files.find(f"{path}/objects"), key=files.size)
        whole = files.cat_file(place)
        for broken in (whole[:-1], whole[:-1] + b"x", b""):
            files.pipe_file(place, broken)
            with pytest.raises(BitplanError, match="not what was published"):
                made.fetch(EXPORT, other)
            assert contents(other) == {}
        files.rm_file(place)
        with pytest.raises(NotFound, match="missing"):
            made.fetch(EXPORT, other)
        made.publish(EXPORT, home)
        assert made.fetch(EXPORT, other)

    def test_many_may_fetch_and_publish_at_once(self, home: Path, tmp_path: Path) -> None:
        root, other, failures = tmp_path / "root", tmp_path / "other", []

        def run(number: int) -> None:
            try:
                mine = Artifacts(root)
                mine.publish(EXPORT, home)
                assert mine.fetch(EXPORT, other)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert contents(other) == {f"{EXPORT}/{name}": content for name, content in FILES.items()}


def die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    write, left = Artifacts._writing, [step]

    def dying(self: Artifacts, place: str) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(self, place)

    monkeypatch.setattr(Artifacts, "_writing", dying)


class TestTheHomeAsRoot:
    def test_there_is_nothing_to_do(self, home: Path) -> None:
        before = contents(home)
        mine = Artifacts(home)
        mine.publish(EXPORT, home)
        assert mine.fetch(EXPORT, home)
        assert not mine.fetch("exports/abd", home)
        assert contents(home) == before
        assert {name: size for name, size, _ in mine.files(EXPORT)} == {name: len(content) for name, content in FILES.items()}
        with mine.open(f"{EXPORT}/config.json") as file:
            assert file.read() == b"{}"
        mine.delete(EXPORT)
        assert not mine.exists(EXPORT)
        assert contents(home) == {"renderings/unit.safetensors": b"weights"}

    def test_files_under_way_are_not_shown(self, home: Path) -> None:
        (home / EXPORT / ".config.json.7.tmp").write_bytes(b"half")
        assert {name for name, *_ in Artifacts(home).files(EXPORT)} == set(FILES)

    def test_links_out_of_it_lead_nowhere(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (home / "exports" / "link").symlink_to(tmp_path)
        mine = Artifacts(home)
        assert not mine.exists("exports/link/secret")
        assert mine.files("exports/link") == []
        with pytest.raises(NotFound):
            mine.open("exports/link/secret")


WAYS_OUT = [
    "",
    "/",
    "..",
    "../x",
    "a/../b",
    "a/..",
    "/etc/passwd",
    "a//b",
    "./a",
    "a/.b",
    ".hidden",
    "a\\b",
    "C:/x",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize("relative", WAYS_OUT, ids=repr)
@pytest.mark.parametrize("root", ["maker", "root"])
def test_paths_that_lead_out_are_refused(home: Path, tmp_path: Path, relative: str, root: str) -> None:
    mine = Artifacts(tmp_path / root)
    calls: list[Callable[[], object]] = [
        lambda: mine.open(relative),
        lambda: mine.files(relative),
        lambda: mine.exists(relative),
        lambda: mine.delete(relative),
        lambda: mine.fetch(relative, home),
        lambda: mine.publish(relative, home),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="no path of an artifact"):
            call()


@pytest.mark.parametrize("name", ["../../outside", "/var/outside", ".hidden", "a/../../b"])
def test_a_manifest_cannot_write_outside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    document = {"schema_version": 1, "files": [{"name": name, "bytes": 0, "sha256": "0" * 64}]}
    (root / "evil.manifest.json").write_text(json.dumps(document))
    with pytest.raises(BitplanError, match="no manifest that can be used"):
        Artifacts(root).fetch("evil", tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"files": [{}]}', '{"files": [{"name": "a", "bytes": 1, "sha256": "xyz"}]}', "\xff"]
)
def test_broken_manifests_are_said_to_be_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BitplanError, match="delete it and make the artifact again"):
        Artifacts(tmp_path).files("broken")


def test_a_full_disk_and_a_root_that_is_away(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Artifacts(tmp_path / "root")
    made.publish(EXPORT, home)

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bitplan.api.store.artifacts.shutil.copyfileobj", full)
    monkeypatch.setattr(module, "FRESH_SECONDS", -1.0)
    with pytest.raises(DiskFull, match="no room left"):
        made.publish(EXPORT, home)
    monkeypatch.undo()
    monkeypatch.setattr(type(made._files), "cat_file", lambda *_: full_io())
    with pytest.raises(StoreUnavailable, match="check BITPLAN_ARTIFACTS"):
        made.exists(EXPORT)


def full_io() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_roots_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_args: Any, **_more: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(UsageError, match=r"cannot be BITPLAN_ARTIFACTS.*nonsense"):
        Artifacts("nonsense://x")
    monkeypatch.setattr("bitplan.api.store.artifacts.fsspec.url_to_fs", missing)
    with pytest.raises(UsageError, match="Install s3fs"):
        Artifacts("s3://bucket/x")
