"""Lists of plans and jobs: filters, sorting, and cursors that survive what happens between two pages."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, event

import fakes
from bitplan.allocator import Plan
from bitplan.allocator.errors import BitplanError, UnknownName, UsageError
from bitplan.api.store import Store
from bitplan.api.store.tables import PlanDocumentRow, PlanRow

BARE = fakes.plan("25%")
KEYS = {"bytes": "bytes", "loss": "loss", "stored_bits_per_weight": "stored_bits_per_weight", "created_at": None}
SORTS = [sign + key for key in KEYS for sign in ("", "-")]
_names = itertools.count()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(Store.open(store_url)) as store:
        yield store


def plan(model: str = "m", target: str = "native", size: int = 1000, loss: float = 0.5, passed: bool | None = None) -> Plan:
    """A plan of its own, of which nothing is computed."""
    predicted = BARE.predicted.model_copy(
        update={
            "loss": loss,
            "stored_bits_per_weight": size / 1000,
            "bytes": BARE.predicted.bytes.model_copy(update={"total": size}),
        }
    )
    return BARE.model_copy(
        update={
            "id": f"{next(_names):08x}" + "ab" * 28,
            "model": BARE.model.model_copy(update={"id": model}),
            "target": target,
            "predicted": predicted,
            "evidence": None if passed is None else fakes.evidence(BARE, passed),
        }
    )


plans = st.builds(
    plan,
    model=st.sampled_from(["m", "n"]),
    target=st.sampled_from(["native", "vllm"]),
    size=st.sampled_from([1, 2, 2**40]),  # few values, so that there are ties
    loss=st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 1e300]),
    passed=st.sampled_from([None, True, False]),
)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stored=st.lists(plans, max_size=12),
    meanwhile=st.lists(plans, max_size=4),
    gone=st.sets(st.integers(0, 11), max_size=3),
    sort=st.sampled_from(SORTS),
    model=st.sampled_from([None, "m"]),
    verified=st.sampled_from([None, True, False]),
    limit=st.integers(1, 5),
)
def test_pages_partition_the_list_whatever_comes_and_goes_meanwhile(
    store: Store,
    stored: list[Plan],
    meanwhile: list[Plan],
    gone: set[int],
    sort: str,
    model: str | None,
    verified: bool | None,
    limit: int,
) -> None:
    with store.database.write() as session:
        session.execute(delete(PlanRow))
        session.execute(delete(PlanDocumentRow))
    for each in stored:
        store.put_plan(each)
    wanted = [p for p in stored if model in (None, p.model.id) and (verified is None or _verdict(p) is verified)]
    expected = [p.id for p in sorted(wanted, key=lambda p: _key(p, sort, stored), reverse=sort.startswith("-"))]
    removed = {stored[index].id for index in gone if index < len(stored)}
    come, seen, cursor, pages = list(meanwhile), [], None, 0
    while True:
        found = store.plans(model=model, verified=verified, sort=sort, cursor=cursor, limit=limit)
        assert len(found.items) <= limit
        seen += [item.id for item in found.items]
        pages += 1
        assert len(seen) <= len(stored) + len(meanwhile)  # no row twice, and so an end
        if found.next_cursor is None:
            break
        assert len(found.items) == limit
        cursor = found.next_cursor
        if come:
            store.put_plan(come.pop())
        if pages == 1:
            for plan_id in removed:
                store.delete_plan(plan_id)
    assert len(seen) == len(set(seen))
    first = seen[:limit]
    kept = [each for each in expected if each not in removed or each in first]
    before = {p.id for p in stored}
    assert [each for each in seen if each in before] == (kept if pages > 1 else expected)


def _key(plan: Plan, sort: str, stored: list[Plan]) -> tuple[float, int]:
    place = [each.id for each in stored].index(plan.id)
    values = {
        "bytes": plan.predicted.bytes.total,
        "loss": plan.predicted.loss,
        "stored_bits_per_weight": plan.predicted.stored_bits_per_weight,
        "created_at": 0,
    }
    return values[sort.removeprefix("-")], place


def _verdict(plan: Plan) -> bool | None:
    return None if plan.evidence is None else plan.evidence["passed"]


def test_filters_are_applied_together(store: Store) -> None:
    kept = plan("m", "vllm", passed=True)
    for each in (kept, plan("m", "native", passed=True), plan("n", "vllm", passed=True), plan("m", "vllm", passed=False)):
        store.put_plan(each)
    asked: dict[str, Any] = {"model": "m", "target": "vllm", "metric": kept.provenance.metric, "budget": "25%", "verified": True}
    assert [item.id for item in store.plans(**asked).items] == [kept.id]
    for name, other in {"model": "o", "target": "mlx", "metric": "random", "budget": "25.0%"}.items():
        assert store.plans(**{**asked, name: other}).items == []


def test_a_sorting_that_does_not_exist_is_refused_with_those_that_do(store: Store) -> None:
    with pytest.raises(UnknownName, match="-stored_bits_per_weight"):
        store.plans(sort="document")
    with pytest.raises(UnknownName):
        store.plans(sort="--bytes")


def encoded(document: Any) -> str:
    text = document if isinstance(document, str) else json.dumps(document)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


FORGED = [
    "",
    "no cursor",
    "é",
    "\0",
    "\ud800",
    "=" * 8,
    "A" * 100_000,
    encoded("[" * 200),
    encoded("null"),
    encoded([]),
    encoded(["plans", "bytes"]),
    encoded(["plans", "bytes", 1]),
    encoded(["plans", "bytes", 1, 2, 3]),
    encoded(["plans", "bytes", "1", 2]),
    encoded(["plans", "bytes", True, 2]),
    encoded(["plans", "bytes", None, 2]),
    encoded(["plans", "bytes", 1.5, 2]),
    encoded(["plans", "bytes", 10**30, 2]),
    encoded(["plans", "bytes", 1, 10**30]),
    encoded(["plans", "bytes", 1, 2**31]),
    encoded(["plans", "bytes", 1, -1]),
    encoded(["plans", "bytes", 1, [2]]),
    encoded('["plans", "bytes", NaN, 2]'),
    encoded('["plans", "bytes", 1, Infinity]'),
    encoded(["plans", "loss", 1.5, 2]),  # of another sorting
    encoded(["jobs", "bytes", 1, 2]),  # of another list
    encoded(["plans", "bytes", 1, 2]) + "é",
    base64.urlsafe_b64encode(b'["plans", "bytes", 1, \xff]').decode(),
]


def test_forged_cursors_are_refused(store: Store) -> None:
    for cursor in FORGED:
        with pytest.raises(UsageError, match="take `next_cursor`"):
            store.plans(sort="bytes", cursor=cursor)
        with pytest.raises(UsageError, match="take `next_cursor`"):
            store.jobs.list(cursor=cursor)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "5", '"x"'])
def test_forged_cursors_of_fractions_are_refused(store: Store, value: str) -> None:
    with pytest.raises(UsageError):
        store.plans(sort="loss", cursor=encoded(f'["plans", "loss", {value}, 2]'))


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.text(st.characters(codec=None, exclude_categories=[]), max_size=12),
    sort=st.sampled_from(["bytes", "loss", "-created_at"]),
    values=st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), max_size=3),
)
def test_no_text_and_no_cursor_breaks_a_list(store: Store, words: str, sort: str, values: list[Any]) -> None:
    """Whatever comes from outside is answered, or refused with an error of the tree."""
    for ask in (
        lambda: store.plans(model=words, target=words, metric=words, budget=words),
        lambda: store.plans(sort=sort, cursor=encoded(["plans", sort, *values])),
        lambda: store.plans(sort=words),
        lambda: store.stored_plan(words),
        lambda: store.profile(words),
        lambda: store.inventory(words),
        lambda: store.jobs.get(words),
        lambda: store.jobs.list(owner=words, parent=words, cursor=words),
        lambda: store.sweeps.get(words),
        lambda: store.keys.check(words),
        lambda: store.keys.revoke(words),
        lambda: store.sessions.key_id(words),
    ):
        with suppress(BitplanError):
            ask()


def test_lists_read_narrow_rows_in_one_statement(store: Store) -> None:
    for _ in range(3):
        store.put_plan(plan())
    cursor = store.plans(sort="loss", limit=1).next_cursor
    statements: list[str] = []

    @event.listens_for(store.database._engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    store.plans(model="m", target="native", verified=None, sort="loss", cursor=cursor)
    queries = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(queries) == 1
    assert "document" not in queries[0]


@pytest.mark.parametrize("sort", ["bytes", "-loss", "-stored_bits_per_weight", "created_at"])
def test_sqlite_walks_an_index_instead_of_sorting(tmp_path: Any, sort: str) -> None:
    with closing(Store.open(f"sqlite:///{tmp_path / 'bitplan.db'}")) as store:
        found: list[tuple[str, Any]] = []

        @event.listens_for(store.database._engine, "before_cursor_execute")
        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
            found.append((statement, parameters))

        store.plans(sort=sort)
        statement, parameters = next(pair for pair in found if pair[0].startswith("SELECT"))
        with store.database.read() as session:
            rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    assert not any("TEMP B-TREE" in row[-1] for row in rows)
