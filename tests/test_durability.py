"""kill -9 from outside, at random moments of real work: nothing is lost, nothing is done twice, nothing half-done is seen."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import models
import postgres
from battered import Service, look_for_damage, until
from bitplan.allocator import ProfileRequest, SensitivityReport, profile_model
from bitplan.api.jobs.engine import Engine
from bitplan.api.jobs.queue import Jobs
from bitplan.api.jobs.supervisor import Supervisor
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from shelf import Shelf

FORMATS = ("int3-g64-asym", "int4-g64")


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    if request.param == "sqlite":
        with Service(tmp_path, f"sqlite:///{tmp_path / 'home' / 'bitplan.db'}") as running:
            yield running
    else:
        with postgres.fresh_database() as url, Service(tmp_path, url) as running:
            yield running


@pytest.fixture(scope="module")
def whole(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> SensitivityReport:
    """The profile of the model, in one process that nobody kills."""
    return profile_model(request_of(shelf), home=tmp_path_factory.mktemp("whole"))


def request_of(shelf: Shelf) -> ProfileRequest:
    return ProfileRequest(str(shelf.model("llama")), formats=FORMATS, tokens=256, calibration=str(shelf.text))


def body_of(shelf: Shelf) -> dict[str, Any]:
    request = request_of(shelf)
    return {"model": request.model, "formats": FORMATS, "tokens": request.tokens, "calibration": request.calibration}


def test_killed_at_random_moments_every_job_ends_and_nothing_is_done_twice(
    service: Service, shelf: Shelf, whole: SensitivityReport
) -> None:
    """The worker, the service and both, each while there is work: a streamed profile, a plan, a sweep, a verification."""
    chance, body = random.Random(7), body_of(shelf)
    sweep = {name: value for name, value in body.items() if name != "model"}
    sweep |= {"models": [body["model"]], "budgets": ["30%", "40%"]}
    jobs = [
        service.ask("/v1/profiles", {**body, "stream": True}, "a")["id"],
        service.ask("/v1/profiles", {**body, "tokens": 320}, "b")["id"],
        service.ask("/v1/plans", {**body, "tokens": 320, "budget": "30%", "verify": True}, "c")["id"],
        service.ask("/v1/sweeps", sweep, "d")["job_id"],
    ]
    for what in chance.sample(["worker", "api", "both"], 3):
        moment = len(service.done()) + chance.randrange(1, 7)
        until(lambda moment=moment: len(service.done()) >= moment)  # type: ignore[misc]
        service.kill(what)
    ended = service.wait(jobs)
    assert [job.status for job in ended] == ["succeeded"] * 4, [job.error for job in ended]
    plan = ended[2].result
    assert plan is not None
    export = service.ask(f"/v1/plans/{plan['plan_id']}/exports", {"to": "bitplan"}, "e")["id"]
    [exported] = service.wait([export])
    assert exported.status == "succeeded"
    damage = look_for_damage(service, [*ended, exported], expected_plans=3)
    assert not damage, damage
    found = service.ask(f"/v1/profiles/{whole.id}")
    assert (found["loss"], found["stderr"]) == (whole.to_json()["loss"], whole.to_json()["stderr"])


def test_a_profile_is_one_however_it_was_divided(shelf: Shelf, whole: SensitivityReport, tmp_path: Path) -> None:
    streamed = profile_model(replace(request_of(shelf), stream=True), home=tmp_path)
    assert streamed.to_json() | {"seconds": 0} == whole.to_json() | {"seconds": 0}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight blocks: enough for two."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    config = models.hf.LlamaConfig(**{**models.LLAMA, "num_hidden_layers": 8}, tie_word_embeddings=True)
    models.hf.LlamaForCausalLM(config).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


def test_two_workers_share_one_profile_and_its_table_is_that_of_one_process(
    deep: Path, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for the model to be streamed: that there are two workers is reason enough. Two machines would share no
    disk, so here each worker has a home of its own, and they meet below one root of artifacts."""
    monkeypatch.setenv("BITPLAN_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setenv("BITPLAN_ARTIFACTS", str(tmp_path / "artifacts"))
    request = replace(request_of(shelf), model=str(deep))
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        store = stack.enter_context(closing(Store.open(url)))
        jobs = Jobs(store, stack.enter_context(closing(Engine(url))))
        for name in ("one", "other"):
            stack.enter_context(Supervisor(Settings.from_environment(tmp_path / name, url)))
        until(lambda: len(store.workers.list()) == 2)
        for warm in [jobs.submit("inspect", {"model": str(model)}) for model in (shelf.model("llama"), deep)]:
            until(lambda warm=warm: jobs.get(warm.id).finished)  # type: ignore[misc]
        job = jobs.submit("profile", {**body_of(shelf), "model": str(deep)})
        until(lambda: jobs.get(job.id).finished, 120)
        done = jobs.get(job.id)
        assert done.error is None
        assert done.result is not None
        found = store.profile(done.result["profile_id"])[0]
    lines = [line.split("\t") for line in (tmp_path / "journal").read_text().splitlines()]
    shares = Counter(pid for _, _, pid in lines)
    assert len({name for name, _, _ in lines}) == len(lines)
    assert len(shares) == 2
    assert min(shares.values()) >= 4
    monkeypatch.delenv("BITPLAN_JOURNAL")
    alone = profile_model(request, home=tmp_path / "alone")
    assert found.to_json() | {"seconds": 0} == alone.to_json() | {"seconds": 0}
