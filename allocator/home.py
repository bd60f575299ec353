"""Where bitplan keeps what it has measured, and how a file gets there whole.

    BITPLAN_HOME (~/.bitplan)/
      inventories/   what was found in a model, by the state of its files
      profiles/      sensitivity reports, by the content of the request
      partial/       steps of measurements under way
      renderings/    quantized weights, one file a unit and format
      models/        float rebuilds of GGUF files
      bitplan.db     the store of the API

A file is written under a temporary name and renamed into place, so that a full disk or a kill leaves the old file or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sensitivity.journal import journal
from .errors import BitplanError, DiskFull

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def home_folder(home: Path | str | None = None) -> Path:
    """`home`, or BITPLAN_HOME, or ~/.bitplan; made if missing."""
    folder = Path(home or os.environ.get("BITPLAN_HOME") or Path.home() / ".bitplan").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BitplanError(
            f"{folder} cannot be used as BITPLAN_HOME ({error.strerror}); name a folder that can be written"
        ) from error
    return folder


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While open, a disk that is full or may not be written becomes a DiskFull or BitplanError that names `path`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # safetensors has a type of its own
            reason = getattr(error, "strerror", None) or error
            kind = DiskFull if getattr(error, "errno", None) in NO_ROOM else BitplanError
            raise kind(f"{path} could not be written ({reason}); free some space or choose another place") from error
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write `path` in one step: after a failure the old file is still there, whole. Raises BitplanError naming the file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def report_path(home: Path, identity: str) -> Path:
    """Where the sensitivity report of that id lies, or will."""
    return home / "profiles" / f"{identity}.json"


def read_json(path: Path) -> Any | None:
    """The document in `path`, or None when there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


class StoredSteps:
    """Steps of one measurement, each kept in a file of `folder` the moment it is done; `finish` lets them go.

    Safe from several processes: files are renamed into place, and a step that another process has done is not done again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, npt.NDArray[np.float64]] = {}

    def __call__(self, name: str, compute: Any) -> npt.NDArray[np.float64]:
        if name not in self._done:
            path = self.path(name)
            kept = read_json(path)
            if kept is None:
                values = np.asarray(compute(), dtype=np.float64)
                write_whole(path, json.dumps([name, values.tolist()]).encode())
                journal(f"{self.folder.stem} {name}")
            else:
                values = np.array(kept[1], dtype=np.float64)
            self._done[name] = values
        return self._done[name]

    def path(self, name: str) -> Path:
        """Where the step of that name lies, or will."""
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def finish(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
