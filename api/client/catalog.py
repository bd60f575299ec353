"""What a service offers, how it is, and who may use it."""

from __future__ import annotations

from typing import Any

from ..schema import KeyBody, KeyView, ListView, ModelView, Named, Scope, WorkerView
from .asking import ask, body, document, id_of, read, shaped
from .talk import Talk


def metrics() -> Talk[list[Named]]:
    """Rules that estimate how much a unit minds a format."""
    return _named("metrics")


def solvers() -> Talk[list[Named]]:
    """Ways to choose."""
    return _named("solvers")


def formats() -> Talk[list[Named]]:
    """Ways to store a weight."""
    return _named("formats")


def targets() -> Talk[list[Named]]:
    """Engines that a plan can be made for."""
    return _named("targets")


def models() -> Talk[list[ModelView]]:
    """Models that were inspected, with how many plans and profiles each has."""
    return shaped(ListView[ModelView], (yield from read("/v1/models"))).items


def workers() -> Talk[list[WorkerView]]:
    """Worker processes and their last sign of life."""
    return shaped(ListView[WorkerView], (yield from read("/v1/workers"))).items


def health() -> Talk[dict[str, Any]]:
    """`{"status": "ready"}` when the service can take work. Raises BitplanError when it cannot, or does not answer."""
    return read("/readyz")


def keys() -> Talk[list[KeyView]]:
    """API keys, without their secrets."""
    return shaped(ListView[KeyView], (yield from read("/v1/keys"))).items


def create_key(name: str, scope: Scope = "read", *, days: float | None = None) -> Talk[tuple[KeyView, str]]:
    """A new API key and its secret, which is shown this once. `days` is how long it is good."""
    reply = yield from ask("POST", "/v1/keys", body(KeyBody, {"name": name, "scope": scope, "days": days}))
    found = document(reply)
    return shaped(KeyView, found), str(found["secret"])


def revoke_key(key: KeyView | str) -> Talk[None]:
    """Make a key worthless, from now on and for good."""
    yield from ask("DELETE", f"/v1/keys/{id_of(key)}")


def _named(what: str) -> Talk[list[Named]]:
    return shaped(ListView[Named], (yield from read(f"/v1/{what}"))).items
