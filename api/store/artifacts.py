"""Artifacts: what is too large for the database, in one folder or object store that all processes of a service share.

The root is BITPLAN_ARTIFACTS, any URL that fsspec knows, and by default the home folder itself. There artifacts lie as
they were made, renamed into place, and fetching and publishing have nothing to do.

Under any other root each content lies once, under its own SHA-256, and an artifact is a manifest that names contents:

    objects/<2 hex>/<64 hex>               a file's bytes
    <artifact>.manifest.json               names, sizes and hashes of the artifact's files

Contents are written first and the manifest last, each in one step, and everything is read through the manifest. So a
reader sees a whole artifact or none, whoever is killed when; publishing again is harmless; and what arrives at a worker
is what was published, or an error.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ...allocator.errors import BitplanError, DiskFull, NotFound, StoreUnavailable, UsageError
from .manifests import CHUNK_BYTES, SUFFIX, Entry, checked, files_below, manifest_of, read_manifest, write_manifest

# Their writes appear whole when they are done; everywhere else a file is written aside and moved.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "r2"}


FRESH_SECONDS = 12 * 3600.0


class Artifacts:
    """The artifacts below one root, a URL or a folder. Safe to share between threads."""

    def __init__(self, root: str | Path) -> None:
        try:
            self._files, path = fsspec.url_to_fs(str(root), use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{str(root)!r} cannot be BITPLAN_ARTIFACTS ({error}); give a folder or a URL") from error
        self._root = path.rstrip("/")
        self._local = Path(path).resolve() if isinstance(self._files, LocalFileSystem) else None

    def publish(self, relative: str, home: Path) -> None:
        """Make the file or folder `home`/`relative` seen by all; there is nothing to do when the root is that home.

        Raises NotFound when there is no such file, DiskFull, StoreUnavailable."""
        source = home / checked(relative)
        if not source.exists():
            raise NotFound(f"there is no {source} to publish")
        if self._is(home):
            return
        with self._errors_understood():
            entries = manifest_of(source)
            for entry, (_, file) in zip(entries, files_below(source), strict=True):
                self._put_content(entry, file)
            self._write(self._at(relative) + SUFFIX, write_manifest(entries))

    def fetch(self, relative: str, home: Path) -> bool:
        """Have the artifact at `home`/`relative`, in one step; false when nobody has published it. What is there already
        stays. Raises BitplanError when what arrives is not what was published, DiskFull, StoreUnavailable."""
        target = home / checked(relative)
        if target.exists():
            return True
        if self._is(home):
            return False
        with self._errors_understood():
            entries = self._manifest(relative)
            if entries is None:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
            try:
                for entry in entries:
                    self._get_content(entry, aside / entry.name if entry.name else aside)
                _move_into_place(aside, target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
                if aside.is_file():
                    aside.unlink()
        return True

    def files(self, relative: str) -> list[tuple[str, int, str | None]]:
        """(name, bytes, SHA-256 where known) of an artifact's files; none when there is no such artifact."""
        with self._errors_understood():
            entries = self._manifest(checked(relative))
            if entries is not None:
                return [(entry.name or relative.rpartition("/")[2], entry.bytes, entry.sha256) for entry in entries]
            plain = self._plain(relative)
            if plain is None:
                return []
            return [(name or plain.name, file.stat().st_size, None) for name, file in files_below(plain)]

    def open(self, relative: str) -> BinaryIO:
        """A file of an artifact, or an artifact that is a file, to be read from anywhere in it. Raises NotFound."""
        with self._errors_understood():
            plain = self._plain(checked(relative))
            if plain is not None and plain.is_file():
                return plain.open("rb")
            entry = self._entry(relative)
            if entry is None:
                raise NotFound(f"there is no artifact {relative!r}; make it again")
            return cast(BinaryIO, self._files.open(self._at(entry.address), "rb"))

    def exists(self, relative: str) -> bool:
        """Whether the whole artifact is there."""
        with self._errors_understood():
            return self._manifest(checked(relative)) is not None or self._plain(relative) is not None

    def delete(self, relative: str) -> None:
        """Take the artifact away; one that is not there is away already. Contents that no manifest names any more are left
        to `collect_garbage`."""
        with self._errors_understood():
            plain = self._plain(checked(relative))
            if plain is not None:
                away = plain.with_name(f".{plain.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
                plain.rename(away)  # in one step: nobody sees half of it
                shutil.rmtree(away) if away.is_dir() else away.unlink()
            if self._manifest(relative) is not None:
                self._files.rm_file(self._at(relative) + SUFFIX)

    def manifests(self) -> list[str]:
        """Every artifact below the root that has a manifest."""
        with self._errors_understood():
            self._files.invalidate_cache()
            found = self._files.find(self._root) if self._files.exists(self._root) else []
            names = [place.removeprefix(self._root).lstrip("/") for place in found]
            return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and not _is_hidden(name))

    def age_seconds(self, relative: str) -> float:
        """How long ago the artifact was published."""
        with self._errors_understood():
            return self._age(self._at(checked(relative)) + SUFFIX)

    def unnamed_contents(self, without: Collection[str]) -> Iterator[tuple[str, int]]:
        """(SHA-256, bytes) of contents that no manifest names, those of `without` aside, and that nobody is about to name."""
        with self._errors_understood():
            named = {entry.sha256 for name in self.manifests() if name not in without for entry in self._manifest(name) or ()}
            folder = self._at("objects")
            for place in self._files.find(folder) if self._files.exists(folder) else []:
                digest = place.rpartition("/")[2]
                if digest not in named and self._age(place) > 2 * FRESH_SECONDS:
                    yield digest, int(self._files.size(place))

    def delete_content(self, sha256: str) -> None:
        with self._errors_understood():
            self._files.rm_file(self._at(Entry("", 0, sha256).address))

    def _age(self, place: str) -> float:
        return time.time() - float(self._files.modified(place).timestamp())

    def _is(self, home: Path) -> bool:
        return self._local is not None and self._local == home.resolve()

    def _at(self, relative: str) -> str:
        return f"{self._root}/{relative}"

    def _plain(self, relative: str) -> Path | None:
        """The artifact as it lies in a home; None when it does not, or when a link leads out of the root."""
        if self._local is None:
            return None
        path = (self._local / relative).resolve()
        return path if path.is_relative_to(self._local) and path.exists() else None

    def _manifest(self, relative: str) -> list[Entry] | None:
        place = self._at(relative) + SUFFIX
        try:
            return read_manifest(self._files.cat_file(place), place)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _entry(self, relative: str) -> Entry | None:
        """The file of that name in the artifact that is, or is above, `relative`."""
        parts = relative.split("/")
        for length in range(len(parts), 0, -1):
            name = "/".join(parts[length:])
            for entry in self._manifest("/".join(parts[:length])) or ():
                if entry.name == name:
                    return entry
        return None

    def _put_content(self, entry: Entry, file: Path) -> None:
        """A content that has lain there for long is put again: it may be about to be collected as one that nobody names."""
        place = self._at(entry.address)
        if self._files.exists(place) and self._files.size(place) == entry.bytes and self._age(place) < FRESH_SECONDS:
            return
        with file.open("rb") as source, self._writing(place) as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)

    def _get_content(self, entry: Entry, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self._files.open(self._at(entry.address), "rb") as source, target.open("wb") as sink:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
        if digest.hexdigest() != entry.sha256:
            where = self._at(entry.address)
            raise BitplanError(
                f"{where} is not what was published ({target.name} has another SHA-256); delete it and publish again"
            )

    def _write(self, place: str, content: bytes) -> None:
        with self._writing(place) as sink:
            sink.write(content)

    @contextmanager
    def _writing(self, place: str) -> Iterator[BinaryIO]:
        """A file that appears at `place` when the block has ended, and not at all when it raises."""
        protocol = self._files.protocol
        if OBJECT_STORES & {protocol, *(() if isinstance(protocol, str) else protocol)}:
            with self._files.open(place, "wb") as sink:
                yield sink
            return
        folder, _, name = place.rpartition("/")
        self._files.makedirs(folder, exist_ok=True)
        aside = f"{folder}/.{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        try:
            with self._files.open(aside, "wb") as sink:
                yield sink
                if self._local is not None:
                    sink.flush()
                    os.fsync(sink.fileno())
            self._files.mv(aside, place)
        except BaseException:
            if self._files.exists(aside):
                self._files.rm_file(aside)
            raise

    @contextmanager
    def _errors_understood(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"a part of the artifact is missing ({error}); delete its manifest and publish it again") from error
        except OSError as error:
            shown = self._files.unstrip_protocol(self._root)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"there is no room left below {shown} or below the home; free some and try again") from error
            raise StoreUnavailable(f"{shown} cannot be used now ({error}); check BITPLAN_ARTIFACTS and try again") from error


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _move_into_place(aside: Path, target: Path) -> None:
    """Whoever comes second leaves what the first brought, which is the same."""
    try:
        aside.rename(target)
    except OSError:
        if not target.exists():
            raise
