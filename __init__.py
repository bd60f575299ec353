"""bitplan: choose how many bits each part of a network gets, prove the choice, and measure that it keeps its promise.

    from bitplan import AsyncClient, Budget, Client, Plan, allocate, execute, verify

Names are resolved at first use, so that `import bitplan` and `import bitplan.solvers` load neither torch nor
transformers. The imports are absolute because test runners load this file under the checkout's own directory name,
where relative ones cannot work.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitplan.allocator import Budget, Plan, allocate, execute, verify
    from bitplan.api.client import AsyncClient, Client

    __version__: str

__all__ = ["AsyncClient", "Budget", "Client", "Plan", "allocate", "execute", "verify"]

_HOMES = {
    "AsyncClient": "bitplan.api.client",
    "Budget": "bitplan.allocator",
    "Client": "bitplan.api.client",
    "Plan": "bitplan.allocator",
    "allocate": "bitplan.allocator",
    "execute": "bitplan.allocator",
    "verify": "bitplan.allocator",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.metadata.version("bitplan")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bitplan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
