"""Manifests: what an artifact consists of, and the names that its files may have."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...allocator.errors import BitplanError, UsageError

CHUNK_BYTES = 1 << 20
SUFFIX = ".manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One file: its path below the artifact ("" when the artifact is a single file), bytes, and SHA-256."""

    name: str
    bytes: int
    sha256: str

    @property
    def address(self) -> str:
        """Where its content lies below the root: one place for one content."""
        return f"objects/{self.sha256[:2]}/{self.sha256}"


def manifest_of(path: Path) -> list[Entry]:
    """Of a file or a folder on this machine. Raises UsageError for links and devices, which no artifact may hold."""
    return [Entry(name, file.stat().st_size, sha256_of(file)) for name, file in files_below(path)]


def files_below(path: Path) -> Iterator[tuple[str, Path]]:
    """Every file of an artifact with its name in it, by name. Names that begin with a dot are files under way."""
    if path.is_file() and not path.is_symlink():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        under_way = any(part.startswith(".") for part in name.split("/"))
        if under_way or (file.is_dir() and not file.is_symlink()):
            continue
        if not stat.S_ISREG(file.lstat().st_mode):
            raise UsageError(f"{file} is no plain file, and artifacts hold nothing else; replace it by a copy")
        yield name, file


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(entries: list[Entry]) -> bytes:
    document = {"schema_version": SCHEMA_VERSION, "files": [vars(entry) for entry in entries]}
    return json.dumps(document, indent=1).encode()


def read_manifest(content: bytes, where: str) -> list[Entry]:
    """Raises BitplanError for a manifest that was not written by `write_manifest`, or that names a way out of its folder."""
    try:
        document = json.loads(content)
        entries = [Entry(str(file["name"]), int(file["bytes"]), str(file["sha256"])) for file in document["files"]]
        for entry in entries:
            if entry.name:
                checked(entry.name)
            if len(bytes.fromhex(entry.sha256)) != 32:
                raise ValueError("no SHA-256")
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise BitplanError(f"{where} is no manifest that can be used ({error}); delete it and make the artifact again") from error
    return entries


def checked(relative: str) -> str:
    """A path below a root, as it was given. Raises UsageError for every other path."""
    parts = relative.split("/")
    wrong = any(part in ("", "..") or part.startswith(".") or "\\" in part or ":" in part for part in parts)
    if wrong or any(ord(character) < 32 for character in relative) or os.path.isabs(relative):
        raise UsageError(f"{relative[:80]!r} is no path of an artifact; give names joined by slashes, none beginning with a dot")
    return relative
