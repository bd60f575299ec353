"""What every kind of store promises (the docstring of `api/store.py`), held against each kind that there is."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import closing

import pytest

import fakes
from bitplan.allocator import Plan, ProfileRequest
from bitplan.allocator.errors import NotFound, UsageError
from bitplan.api.schema import ProfileBody
from bitplan.api.store import Store

BUDGETS = ("22%", "24%", "26%", "28%", "30%")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(Store.open(store_url)) as store:
        yield store


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return [fakes.plan(budget) for budget in BUDGETS]


def test_what_comes_out_equals_what_went_in(store: Store, plans: list[Plan]) -> None:
    request = ProfileRequest("tiny")
    report, inventory = fakes.report(request), fakes.inventory()
    assert store.put_plan(plans[0])
    assert store.put_profile(report, ProfileBody(model="tiny"))
    assert store.put_inventory(inventory)
    assert store.plan(plans[0].id) == plans[0]
    stored, body = store.profile(report.id)
    assert stored.to_json() == report.to_json()
    assert body == ProfileBody(model="tiny", formats=report.formats)
    assert store.inventory(inventory.fingerprint) == inventory


def test_putting_twice_is_putting_once(store: Store, plans: list[Plan]) -> None:
    later = plans[0].model_copy(update={"provenance": plans[0].provenance.model_copy(update={"created_at": "2099-01-01"})})
    assert store.put_plan(plans[0])
    assert not store.put_plan(later)
    assert store.plan(plans[0].id) == plans[0]
    assert len(store.plans().items) == 1
    report = fakes.report(ProfileRequest("tiny"))
    assert store.put_profile(report, ProfileBody(model="tiny"))
    assert not store.put_profile(report, ProfileBody(model="tiny"))
    assert len(store.profiles().items) == 1
    assert store.put_inventory(fakes.inventory())
    assert not store.put_inventory(fakes.inventory())


def test_evidence_is_attached_and_replaced_by_newer_evidence(store: Store, plans: list[Plan]) -> None:
    plan = plans[0]
    store.put_plan(plan)
    assert store.plans().items[0].verified is None
    store.attach_evidence(plan.id, fakes.evidence(plan, passed=False))
    assert store.plans().items[0].verified is False
    newer = fakes.evidence(plan)
    store.put_plan(plan.model_copy(update={"evidence": newer}))
    assert store.plan(plan.id).evidence == newer
    assert store.plans().items[0].verified is True
    store.put_plan(plan)  # a document without evidence takes none away
    assert store.plan(plan.id).evidence == newer
    assert store.plan(plan.id).model_copy(update={"evidence": None}) == plan


def test_lists_are_newest_first_and_pages_stay_put_while_plans_come_in(store: Store, plans: list[Plan]) -> None:
    for plan in plans[:4]:
        store.put_plan(plan)
    first = store.plans(limit=2)
    store.put_plan(plans[4])
    second = store.plans(limit=2, cursor=first.next_cursor)
    assert [item.id for item in first.items + second.items] == [plan.id for plan in reversed(plans[:4])]
    assert first.next_cursor is not None
    assert second.next_cursor is None
    assert [item.budget for item in store.plans().items] == list(reversed(BUDGETS))


def test_lists_are_filtered_by_model_and_target(store: Store, plans: list[Plan]) -> None:
    other, engine = fakes.plan("30%", "experts"), fakes.plan("30%", target="vllm")
    for plan in (plans[0], other, engine):
        store.put_plan(plan)
    assert [item.id for item in store.plans(model="experts").items] == [other.id]
    assert [item.id for item in store.plans(target="vllm").items] == [engine.id]
    assert store.plans(model="experts", target="vllm").items == []


def test_an_id_may_be_any_prefix_that_only_one_has(store: Store, plans: list[Plan]) -> None:
    alike = [plan.model_copy(update={"id": f"abcd{index}" + plan.id[5:]}) for index, plan in enumerate(plans[:2])]
    for plan in alike:
        store.put_plan(plan)
    assert store.plan("abcd0") == alike[0]
    with pytest.raises(UsageError, match="more than one plan"):
        store.plan("abcd")
    with pytest.raises(NotFound, match="bitplan list"):
        store.plan("abcde")
    with pytest.raises(NotFound):
        store.plan("")
    with pytest.raises(NotFound):
        store.plan("abcd%")  # no pattern


def test_a_deleted_plan_is_gone_and_may_come_back(store: Store, plans: list[Plan]) -> None:
    store.put_plan(plans[0])
    store.delete_plan(plans[0].id)
    with pytest.raises(NotFound):
        store.plan(plans[0].id)
    with pytest.raises(NotFound):
        store.delete_plan(plans[0].id)
    assert store.put_plan(plans[0])


def test_missing_things_raise_not_found(store: Store) -> None:
    for look in (store.plan, store.profile, store.inventory, store.jobs.get):
        with pytest.raises(NotFound):
            look("0123")
    with pytest.raises(UsageError, match="cursor"):
        store.plans(cursor="no cursor")


def test_a_store_is_kept_when_it_is_opened_again(database_url: str, plans: list[Plan]) -> None:
    with closing(Store.open(database_url)) as store:
        store.put_plan(plans[0])
    with closing(Store.open(database_url)) as store:
        assert store.plan(plans[0].id) == plans[0]


def test_processes_share_a_store(database_url: str, plans: list[Plan]) -> None:
    """Two processes open a store that is not there yet, put the same plans and ask for the same work: nothing is lost or
    doubled."""
    documents = [plan.to_json() for plan in plans]
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        results = pool.starmap(_put_and_submit, [(database_url, documents)] * 2)
    with closing(Store.open(database_url)) as store:
        assert sum(new for new, _ in results) == len(plans)
        assert {item.id for item in store.plans().items} == {plan.id for plan in plans}
        asked = {job for _, jobs in results for job in jobs}
        assert asked == {job.id for job in store.jobs.list().items}
        assert len(asked) == len(plans)


def _put_and_submit(url: str, documents: list[str]) -> tuple[int, list[str]]:
    with closing(Store.open(url)) as store:
        jobs = [store.jobs.submit("verify", {"plan": number}).id for number in range(len(documents))]
        new = sum(store.put_plan(Plan.model_validate(json.loads(document))) for document in documents)
        return new, jobs
