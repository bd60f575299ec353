"""API keys and workers: what an admin looks after."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from ..auth import PrincipalDep
from ..depends import StoreDep, problems
from ..schema import CreatedKey, KeyBody, KeyView, ListView


def _admin(principal: PrincipalDep) -> None:
    principal.need("admin", "look after keys")


router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[Depends(_admin)])
KeyId = Annotated[str, "id of a key"]


@router.post("", operation_id="keys_create", status_code=201, summary="Make a key", responses=problems(422))
def create(body: KeyBody, store: StoreDep, response: Response) -> CreatedKey:
    """Make a key. Its secret is in this answer and nowhere else, ever again."""
    key, secret = store.keys.create(body.name, body.scope, body.days)
    response.headers["Cache-Control"] = "no-store"
    return CreatedKey(**key.model_dump(), secret=secret)


@router.get("", operation_id="keys_list", summary="List keys")
def index(store: StoreDep) -> ListView[KeyView]:
    """All keys, newest first, without their secrets; revoked ones too."""
    return ListView(items=store.keys.list())


@router.delete("/{key_id}", operation_id="keys_revoke", summary="Revoke a key", responses=problems(404))
def revoke(key_id: str, store: StoreDep) -> KeyView:
    """The key is good no more, from now on; its row stays, so that jobs keep their owner."""
    return store.keys.revoke(key_id)
