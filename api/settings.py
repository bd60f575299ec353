"""Settings: where state lives, and which files a request over HTTP may name.

BITPLAN_HOME          folder of the store, inventories, profiles, renderings (default ~/.bitplan)
BITPLAN_MODEL_ROOTS   when set, the only folders from which models and calibration files are read, separated as in PATH;
                      the allocator applies it to models, this file to calibration files
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..allocator.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """`database_url` is any SQLAlchemy URL."""

    home: Path
    database_url: str

    @classmethod
    def from_environment(cls, home: Path | str | None = None, database_url: str | None = None) -> Settings:
        from ..allocator import home_folder

        folder = home_folder(home)
        return cls(folder, database_url or store_url(folder))


def store_url(home: Path) -> str:
    """The default store: one SQLite file."""
    return f"sqlite:///{home / 'bitplan.db'}"


def check_calibration(path: str) -> None:
    """Refuse a calibration file outside the roots, links followed. Raises UsageError."""
    named = os.environ.get("BITPLAN_MODEL_ROOTS", "")
    roots = [Path(root).resolve() for root in named.split(os.pathsep) if root]
    resolved = Path(path).expanduser().resolve()
    if roots and not any(resolved.is_relative_to(root) for root in roots):
        raise UsageError(f"the calibration file {path!r} lies outside BITPLAN_MODEL_ROOTS; move it into one of those folders")
