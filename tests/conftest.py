"""Set before anything is imported: one thread a process, no network, and never the user's own BITPLAN_HOME."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi.testclient import TestClient

    from bitplan.api.settings import Settings
    from bitplan.api.store import Store
    from shelf import Shelf

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if not Path("/dev/nvidiactl").exists():  # before Triton is imported, by whomever: its kernels are interpreted where no GPU is
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

collect_ignore_glob = (
    [] if find_spec("triton") else ["test_triton_*.py"]
)  # Triton is for Linux; its kernels are tested where it is

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
_HOME = tempfile.TemporaryDirectory(prefix="bitplan-tests-")


def pytest_configure() -> None:
    os.environ["BITPLAN_HOME"] = _HOME.name  # what a fixture wider than one test finds


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITPLAN_HOME", str(tmp_path / "bitplan-home"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data that lies beside the checkout; tests that use it carry the mark `shared`."""
    return SHARED


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Tiny models that are profiled once a session; torch is loaded by the first test that asks."""
    from shelf import Shelf

    return Shelf(tmp_path_factory.mktemp("shelf"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason="the models and data of ../shared/data are not on this machine"))
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device on this machine"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that holds nothing yet; every test that takes it runs on each kind."""
    import postgres

    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bitplan.db'}"
    else:
        with postgres.fresh_database() as url:
            yield url


@pytest.fixture(scope="session")
def store_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with nothing in it, to be copied."""
    from bitplan.api.store import Store

    path = tmp_path_factory.mktemp("store") / "bitplan.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, store_file: Path) -> Iterator[str]:
    """A store with nothing in it, of each kind."""
    import postgres

    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(store_file, tmp_path / 'bitplan.db')}"
    else:
        with postgres.fresh_database(postgres.store_template()) as url:
            yield url


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_file: Path) -> Settings:
    """Of a service whose models need no measuring."""
    import fakes
    from bitplan.api.settings import Settings

    fakes.install(monkeypatch)
    settings = Settings.from_environment(tmp_path / "home")
    shutil.copy(store_file, settings.home / "bitplan.db")
    return settings


@pytest.fixture
def http(settings: Settings) -> Iterator[TestClient]:
    """A client of that service."""
    from fastapi.testclient import TestClient

    from bitplan.api.app import create_app

    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def store(http: TestClient) -> Store:
    """What that service stores."""
    store: Store = http.app.state.store  # type: ignore[attr-defined]
    return store


@pytest.fixture
def measured(settings: Settings) -> str:
    """The id of a profile that is there before the first request."""
    import fakes
    from bitplan.allocator import ProfileRequest

    return fakes.profile_model(ProfileRequest("tiny"), home=settings.home).id
