"""Which files a name may lead to: BITPLAN_MODEL_ROOTS, a list of folders separated as in PATH.

Unset, every path may be named: a person on their own machine. Set, only what lies below one of the folders, links
followed; set to nothing, no path at all. Whether a path lies inside is decided from its spelling and its links alone,
before anything of it is looked at, and the refusal is the same whether or not there is such a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import BitplanError

LONGEST = 4096  # characters of a path or name; the limit of the operating systems
SHOWN = 80
URL = re.compile(r"[a-z][a-z0-9+.-]*://|file:|\\\\", re.IGNORECASE)
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def model_roots() -> tuple[Path, ...] | None:
    """The folders that may be read from; None: all of them."""
    named = os.environ.get("BITPLAN_MODEL_ROOTS")
    return None if named is None else tuple(Path(root).resolve() for root in named.split(os.pathsep) if root)


def check_spelling(what: str, name: str, error: type[BitplanError]) -> None:
    """Raise `error` for what is neither a name nor a path; `what` begins the sentence, as in "model"."""
    if not name.strip():
        raise error(f"{what} {name!r} is empty; name one")
    if len(name) > LONGEST:
        raise error(f"{what} {name[:SHOWN]!r}... has {len(name)} characters; a name or path has {LONGEST} at most")
    if UNPRINTABLE.search(name):
        raise error(f"{what} {name[:SHOWN]!r} contains characters that no name or path has; remove them")
    if URL.match(name):
        raise error(f"{what} {name[:SHOWN]!r} is an address and nothing is fetched from there; give a file or folder here")


def inside(name: str, roots: tuple[Path, ...]) -> Path | None:
    """The path that `name` spells, links followed, when that lies in one of `roots`; it need not exist."""
    try:
        path = Path(name).expanduser().resolve()
    except (OSError, RuntimeError):  # a loop of links, or the home of nobody
        return None
    return path if any(path.is_relative_to(root) for root in roots) else None


def check_links(what: str, name: str, path: Path, roots: tuple[Path, ...], error: type[BitplanError]) -> None:
    """Raise `error` when anything below `path`, which lies in one of `roots`, is a link that leads out of them."""
    for entry in path.rglob("*") if path.is_dir() else ():
        if entry.is_symlink() and inside(str(entry), roots) is None:
            raise error(f"{what} {name[:SHOWN]!r} holds a link out of BITPLAN_MODEL_ROOTS, {entry.name}; put the file there")


def outside(what: str, name: str, error: type[BitplanError]) -> BitplanError:
    """The one refusal of a path that may not be named."""
    return error(f"{what} {name[:SHOWN]!r} lies outside BITPLAN_MODEL_ROOTS; move it into one of those folders")
