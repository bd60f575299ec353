from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitplan.allocator.errors import BitplanError
from bitplan.allocator.home import StoredSteps, home_folder, read_json, write_whole

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile(io.FileIO):
    """A file on a disk with room for three more bytes."""

    def write(self, content: Any, /) -> int:
        super().write(bytes(content)[:3])
        raise FULL


def fill_disk(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def refuse(*arguments: object) -> None:
        raise FULL

    if when == "write":
        monkeypatch.setattr(Path, "open", lambda path, mode="r", *rest, **more: FullFile(path, mode.replace("b", "")))
    elif when == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(Path, "replace", refuse)


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("when", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_file_whole(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"the old content")
    with monkeypatch.context() as patched:
        fill_disk(patched, when)
        with pytest.raises(BitplanError, match=f"{path} could not be written .*; free some space"):
            write_whole(path, b"the new content")
    assert path.read_bytes() == b"the old content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("when", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_no_new_file(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        fill_disk(patched, when)
        with pytest.raises(BitplanError):
            write_whole(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BitplanError, match="file/below/it could not be written"):
        write_whole(tmp_path / "file" / "below" / "it", b"content")


def test_read_json_gives_none_for_what_is_not_there_or_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_json(path) is None
    content = json.dumps({"a": [1, 2.5, "é"]}).encode()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        assert read_json(path) is None
    path.write_bytes(content)
    assert read_json(path) == {"a": [1, 2.5, "é"]}
    path.write_bytes(b"\xff\xfe")
    assert read_json(path) is None
    assert read_json(tmp_path) is None


def test_the_home_folder_is_the_argument_or_the_variable_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPLAN_HOME", str(tmp_path / "variable"))
    assert home_folder(tmp_path / "argument") == tmp_path / "argument"
    assert home_folder() == tmp_path / "variable"
    monkeypatch.delenv("BITPLAN_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert home_folder() == tmp_path / "user" / ".bitplan"
    assert home_folder("~/other") == tmp_path / "user" / "other"
    assert all((tmp_path / made).is_dir() for made in ("argument", "variable", "user/.bitplan", "user/other"))


def test_a_home_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BitplanError, match="name a folder that can be written"):
        home_folder(tmp_path / "file")


class Work:
    """Steps whose numbers follow from their names; counts how often each is done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def run(self, steps: StoredSteps, name: str) -> np.ndarray[Any, Any]:
        def compute() -> np.ndarray[Any, Any]:
            self.done.append(name)
            return expected(name)

        return steps(name, compute)


def expected(name: str) -> np.ndarray[Any, Any]:
    return np.array([[1 / (3 + len(name)), np.nan], [1e-300, float(ord(name[-1]))]])


def test_steps_are_done_once_however_often_they_are_opened(tmp_path: Path) -> None:
    work, path = Work(), tmp_path / "partial" / "steps"
    steps = StoredSteps(path)
    for name in ("a", "b", "a"):
        np.testing.assert_array_equal(work.run(steps, name), expected(name))
    again = StoredSteps(path)
    for name in ("c", "b", "a"):
        np.testing.assert_array_equal(work.run(again, name), expected(name))
    assert work.done == ["a", "b", "c"]
    again.finish()
    assert not path.exists()
    again.finish()  # to finish twice is no mistake


def test_a_step_that_fails_is_not_kept(tmp_path: Path) -> None:
    steps = StoredSteps(tmp_path / "steps")

    def fail() -> np.ndarray[Any, Any]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        steps("a", fail)
    np.testing.assert_array_equal(Work().run(StoredSteps(tmp_path / "steps"), "a"), expected("a"))


def test_steps_survive_a_file_that_was_cut_anywhere(tmp_path: Path) -> None:
    """The kill may fall between any two bytes. What was written whole is never done again, then or after a second kill."""
    path = tmp_path / "steps"
    Work().run(StoredSteps(path), "a")
    [first] = path.iterdir()
    Work().run(StoredSteps(path), "b")
    [second] = set(path.iterdir()) - {first}
    whole = second.read_bytes()
    for cut in range(len(whole)):
        for file in set(path.iterdir()) - {first}:
            file.unlink()
        second.write_bytes(whole[:cut])
        work = Work()
        for name in ("a", "b", "c"):
            np.testing.assert_array_equal(work.run(StoredSteps(path), name), expected(name))
        assert work.done == ["b", "c"]


def test_steps_of_several_processes_are_found_by_all(tmp_path: Path) -> None:
    """Both were opened before either had done anything."""
    one, other, work = StoredSteps(tmp_path / "steps"), StoredSteps(tmp_path / "steps"), Work()
    for steps, name in ((one, "a"), (other, "b"), (other, "a"), (one, "b")):
        np.testing.assert_array_equal(work.run(steps, name), expected(name))
    assert work.done == ["a", "b"]


def test_finished_steps_are_noted_in_a_journal_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPLAN_JOURNAL", str(tmp_path / "journal"))
    for name in ("a", "b", "a"):
        Work().run(StoredSteps(tmp_path / "steps"), name)
    lines = [line.split("\t") for line in (tmp_path / "journal").read_text().splitlines()]
    assert [(name, int(pid)) for name, _, pid in lines] == [("steps a", os.getpid()), ("steps b", os.getpid())]


def test_a_full_disk_stops_the_steps_with_a_sentence_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, work = tmp_path / "steps", Work()
    steps = StoredSteps(path)
    work.run(steps, "a")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _refuse)
        with pytest.raises(BitplanError, match="free some space"):
            work.run(steps, "b")
    for name in ("a", "b"):
        np.testing.assert_array_equal(work.run(StoredSteps(path), name), expected(name))
    assert work.done == ["a", "b", "b"]


def _refuse(*arguments: object) -> None:
    raise FULL
