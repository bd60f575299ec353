"""Who asks, and what they may do.

A request proves who it comes from by `Authorization: Bearer bp_...` or by the cookie that a browser got for its key. Where
keys are not required (a service that only its own machine can reach), a request without either is the machine's owner.

    read   whatever only looks (GET)
    plan   also starts jobs, and cancels those it started
    admin  also deletes, cancels anybody's jobs and makes keys
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ..allocator.errors import Forbidden
from .schema import Scope
from .store.keys import NOBODY

SCOPES: tuple[Scope, ...] = ("read", "plan", "admin")  # each may do what those before it may


@dataclass(frozen=True)
class Principal:
    """Whoever asks. `name` is the name of their key, and the owner of the jobs they start."""

    name: str
    scope: Scope

    def may(self, scope: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def need(self, scope: Scope, to: str) -> None:
        """Raise Forbidden unless the scope suffices; `to` ends the sentence, as in "to delete a plan"."""
        if not self.may(scope):
            raise Forbidden(f"the key {self.name!r} has the scope {self.scope!r}; it takes {scope!r} to {to}")

    def need_ownership(self, owner: str, to: str) -> None:
        """Raise Forbidden unless the thing is the principal's own or the principal is an admin."""
        if self.name != owner and not self.may("admin"):
            raise Forbidden(f"the key {self.name!r} may only {to} of its own; this one belongs to {owner!r}")


LOCAL = Principal(NOBODY, "admin")
COOKIE = "bitplan_session"


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


PrincipalDep = Annotated[Principal, Depends(_principal)]
