"""What lies in a home folder and nobody needs any more, found by looking; nothing is deleted here.

partial/      steps of a measurement whose profile exists, or that nobody has touched for long
renderings/   quantized weights that no profile and no plan is made of
exports/      of plans that were deleted
*.tmp         files and folders under way, of processes that died
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

TEMPORARY = re.compile(r"\.(\d+)\.(?:[0-9a-f]+\.)?tmp$|^verify-[0-9a-z_]{8}$")
IDENTITY = re.compile(r"[0-9a-f]{64}")
QUIET_SECONDS = 3600.0  # a process on another machine cannot be asked whether it lives; what it writes to is not so old
FINGERPRINT = 32  # characters of a render fingerprint that name its folder


@dataclass(frozen=True)
class Leftover:
    kind: str
    path: Path


@dataclass(frozen=True)
class Needed:
    """Ids of plans and profiles that exist, and fingerprints of the renderings that these are made of."""

    plans: Collection[str]
    profiles: Collection[str]
    renderings: Collection[str]


def leftovers(home: Path, needed: Needed, older_than_seconds: float, idle: bool) -> Iterator[Leftover]:
    """What may go. While jobs are under way (not `idle`) only what no job can be using."""
    yield from (Leftover("temporary files", path) for path in _temporaries(home) if _is_dead(path, idle))
    for path in _entries(home / "partial"):
        match = IDENTITY.match(path.name)
        finished = match is not None and match[0] in needed.profiles
        if finished or (idle and _quiet(path) > older_than_seconds):
            yield Leftover("partial measurements", path)
    if idle:
        names = {fingerprint[:FINGERPRINT] for fingerprint in needed.renderings}
        for path in _entries(home / "renderings"):
            if path.name not in names and _quiet(path) > older_than_seconds:
                yield Leftover("renderings", path)
    for path in _entries(home / "exports"):
        if path.name not in needed.plans:
            yield Leftover("exports", path)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what vanishes meanwhile counts nothing."""
    return sum(_stat(file, "st_size") for file in ([path, *path.rglob("*")] if path.is_dir() else [path]) if not file.is_dir())


def _entries(folder: Path) -> list[Path]:
    """What is not under way itself."""
    return [path for path in sorted(folder.iterdir()) if not TEMPORARY.search(path.name)] if folder.is_dir() else []


def _temporaries(home: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(home):
        for name in [*folders, *files]:
            if TEMPORARY.search(name):
                yield Path(folder) / name
        folders[:] = [name for name in folders if not TEMPORARY.search(name)]


def _is_dead(path: Path, idle: bool) -> bool:
    match = TEMPORARY.search(path.name)
    assert match is not None
    if match[1] is None:
        return idle and _quiet(path) > 24 * QUIET_SECONDS
    return not _lives(int(match[1])) and _quiet(path) > QUIET_SECONDS


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _quiet(path: Path) -> float:
    """Seconds since anything in it changed."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return time.time() - max(_stat(file, "st_mtime") for file in files)


def _stat(path: Path, field: str) -> int:
    try:
        return int(getattr(path.lstat(), field))
    except FileNotFoundError:
        return 0
