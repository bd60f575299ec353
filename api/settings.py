"""Settings: where state lives, who must show a key, and which files a request over HTTP may name.

BITPLAN_HOME          folder of the store, inventories, profiles, renderings (default ~/.bitplan)
BITPLAN_DATABASE_URL  the store, as a SQLAlchemy URL (default: SQLite in BITPLAN_HOME); `--database-url` comes first
BITPLAN_ARTIFACTS     folder or URL of exports and whatever else workers share (default: BITPLAN_HOME)
BITPLAN_REQUIRE_KEYS  1: every request needs an API key; `bitplan serve` sees to it where other machines can reach it
BITPLAN_RATE          requests that one key may send, such as 300/minute (default: 300/second, and no limit without keys)
BITPLAN_MODEL_ROOTS   when set, the only folders from which models and calibration files are read, separated as in PATH;
                      where keys are required and it is not set, no path may be named at all
BITPLAN_HUB           0: nothing is fetched from the Hugging Face hub
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..allocator.errors import UsageError
from ..allocator.roots import check_links, check_spelling, inside, model_roots, outside
from ..allocator.source import check_name


@dataclass(frozen=True)
class Settings:
    """`database_url` is any SQLAlchemy URL; `rate` is None or a rate limit in words; `artifacts` None: the home."""

    home: Path
    database_url: str
    require_keys: bool = False
    rate: str | None = None
    artifacts: str | None = None

    @property
    def artifacts_root(self) -> str:
        """The folder or URL of all artifacts."""
        return self.artifacts or str(self.home)

    @classmethod
    def from_environment(
        cls, home: Path | str | None = None, database_url: str | None = None, *, require_keys: bool = False
    ) -> Settings:
        """What the environment says; `require_keys` may only add to it."""
        from ..allocator import home_folder

        folder = home_folder(home)
        required = require_keys or os.environ.get("BITPLAN_REQUIRE_KEYS", "0") not in ("", "0")
        url = database_url or os.environ.get("BITPLAN_DATABASE_URL") or store_url(folder)
        rate, artifacts = os.environ.get("BITPLAN_RATE") or None, os.environ.get("BITPLAN_ARTIFACTS") or None
        return cls(folder, url, required, rate, artifacts)

    @property
    def model_roots(self) -> tuple[Path, ...] | None:
        """Folders that a request may name paths in; None: anywhere."""
        named = model_roots()
        return () if named is None and self.require_keys else named


def store_url(home: Path) -> str:
    """The default store: one SQLite file."""
    return f"sqlite:///{home / 'bitplan.db'}"


def check_model(name: str, settings: Settings) -> None:
    """Refuse a model that a request may not name, before any file is looked at. Raises ModelError."""
    check_name(name, settings.model_roots)


def check_calibration(path: str, settings: Settings) -> None:
    """Refuse a calibration file outside the roots, links followed, before it is looked at. Raises UsageError."""
    check_spelling("calibration source", path, UsageError)
    roots = settings.model_roots
    if roots is None:
        return
    found = inside(path, roots)
    if found is None:
        raise outside("calibration source", path, UsageError)
    check_links("calibration source", path, found, roots, UsageError)
