"""A service that asks for keys, and clients with one of each scope."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import fakes
from bitplan.allocator import ProfileRequest
from bitplan.api.app import create_app
from bitplan.api.settings import Settings
from bitplan.api.store import Store

MODEL = "someone/tiny"  # a name of the hub's form, which may be asked for wherever the service listens


@dataclass(frozen=True)
class Guests:
    """`nobody` shows no key; `other` has another key of the scope plan. The secrets are by the names of the clients."""

    app: FastAPI
    settings: Settings
    store: Store
    secrets: dict[str, str]
    nobody: TestClient
    reader: TestClient
    planner: TestClient
    other: TestClient
    admin: TestClient


@contextmanager
def invited(home: Path, *, rate: str | None = None, require_keys: bool = True) -> Iterator[Guests]:
    """The service in a new home, with a profile of MODEL measured."""
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch)
        plain = Settings.from_environment(home)
        settings = Settings(plain.home, plain.database_url, require_keys=require_keys, rate=rate)
        fakes.profile_model(ProfileRequest(MODEL), home=settings.home)
        app = create_app(settings)
        store: Store = app.state.store
        names = {"reader": "read", "planner": "plan", "other": "plan", "admin": "admin"}
        secrets = {name: store.keys.create(name, scope)[1] for name, scope in names.items()}  # type: ignore[arg-type]

        def client(name: str) -> TestClient:
            headers = {"Authorization": f"Bearer {secrets[name]}"} if name in secrets else {}
            return TestClient(app, raise_server_exceptions=False, headers=headers, follow_redirects=False)

        clients = {name: client(name) for name in ("nobody", *secrets)}
        with clients["nobody"]:  # starts and ends the application
            yield Guests(app, settings, store, secrets, **clients)
