"""Which requests are sent again, when, and when the client gives up. No network, no waiting: see talks.py."""

from __future__ import annotations

import httpx2
import pytest

from bitplan.allocator.errors import BitplanError, UsageError
from bitplan.api.client import jobs as job_verbs
from bitplan.api.client.asking import ask, read
from bitplan.api.client.persistence import FIRST_PAUSE, LONGEST_PAUSE
from talks import URL, Performer, job_state, script

OK = httpx2.Response(200, json={"fine": True})
LOST = httpx2.ReadError("the connection broke")
BUSY = {"type": "/problems/idempotency-in-flight", "title": "busy", "status": 409, "detail": "still being answered"}


def refusal(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json={"title": "no", "status": status}, headers=headers)


PASSING: dict[str, httpx2.Response | Exception] = {
    "read": LOST,
    "connect": httpx2.ConnectError("refused"),
    "timeout": httpx2.ReadTimeout("slow"),
    "protocol": httpx2.RemoteProtocolError("cut"),
    **{str(status): refusal(status) for status in (429, 502, 503, 504)},
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("failures", [1, 3])
def test_what_may_succeed_later_is_sent_again_with_growing_pauses(failure: httpx2.Response | Exception, failures: int) -> None:
    performer = Performer(script(*[failure] * failures, OK))
    assert performer.run(read("/x")) == {"fine": True}
    assert len(performer.asked) == failures + 1
    assert performer.pauses == [(FIRST_PAUSE * 2**n / 2, FIRST_PAUSE * 2**n) for n in range(failures)]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 422, 500, 501])
def test_what_would_fail_again_is_not_sent_again(status: int) -> None:
    performer = Performer(script(refusal(status)))
    with pytest.raises(BitplanError):
        performer.run(ask("POST", "/x"))
    assert len(performer.asked) == 1


def test_a_post_carries_one_key_over_all_its_attempts_and_the_next_one_another() -> None:
    performer = Performer(script(LOST, refusal(503), OK, OK))
    performer.run(ask("POST", "/x"))
    performer.run(ask("POST", "/x"))
    keys = [sent.headers["Idempotency-Key"] for sent in performer.asked]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    performer = Performer(script(OK))
    performer.run(ask("GET", "/x"))
    assert performer.asked[0].headers == {}


def test_the_answer_to_a_lost_attempt_is_waited_for() -> None:
    """The service still works on the attempt whose connection broke, and says so; without such an attempt 409 is final."""
    busy = httpx2.Response(409, json=BUSY)
    assert Performer(script(LOST, busy, busy, OK)).run(ask("POST", "/x")) is OK
    performer = Performer(script(busy))
    with pytest.raises(UsageError, match="still being answered"):
        performer.run(ask("POST", "/x"))


def test_retries_are_counted_and_the_last_error_says_where_and_what_to_do() -> None:
    performer = Performer(lambda _: httpx2.ConnectError("refused"), retries=2)
    with pytest.raises(BitplanError, match=rf"no answer from {URL} \(refused\); start the service with `bitplan serve`"):
        performer.run(read("/x"))
    assert len(performer.asked) == 3
    performer = Performer(lambda _: refusal(503), retries=0)
    with pytest.raises(BitplanError, match="no"):
        performer.run(read("/x"))
    assert (len(performer.asked), performer.pauses) == (1, [])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:09 GMT", "date": "Sun, 22 Nov 2026 10:00:04 GMT"}, 5.0),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:00 GMT", "date": "Sun, 22 Nov 2026 10:00:04 GMT"}, 0.0),
    ],
)
def test_the_service_says_when_to_come_back(headers: dict[str, str], seconds: float) -> None:
    performer = Performer(script(refusal(429, **headers), OK))
    performer.run(read("/x"))
    ((shortest, longest),) = performer.pauses
    assert shortest == seconds
    assert shortest <= longest <= shortest + FIRST_PAUSE


@pytest.mark.parametrize("nonsense", ["soon", "-3", "Sun, 99 Nov 2026 10:00:09 GMT", ""])
def test_a_wish_that_cannot_be_read_is_no_wish(nonsense: str) -> None:
    performer = Performer(script(refusal(503, **{"retry-after": nonsense}), OK))
    performer.run(read("/x"))
    assert performer.pauses == [(FIRST_PAUSE / 2, FIRST_PAUSE)]


def test_no_request_is_tried_for_longer_than_the_patience() -> None:
    performer = Performer(script(refusal(429, **{"retry-after": "31"})), seconds=30)
    with pytest.raises(BitplanError):
        performer.run(read("/x"))
    assert performer.pauses == []
    performer = Performer(lambda _: LOST, seconds=30)
    with pytest.raises(BitplanError):
        performer.run(read("/x", patient=True))
    assert 30 - LONGEST_PAUSE <= performer.clock <= 30
    assert max(longest for _, longest in performer.pauses) == LONGEST_PAUSE


def test_waiting_outlives_a_service_that_is_started_again() -> None:
    """Twenty refused connections are more than any request may take, but a job that was taken on is waited for."""
    running = job_state(2)
    ended = {**running, "status": "succeeded", "version": 3, "result": {}}
    refused = [httpx2.ConnectError("refused")] * 20
    performer = Performer(script(httpx2.Response(200, json=running), *refused, httpx2.Response(200, json=ended)))
    seen: list[int] = []
    job = performer.run(job_verbs.wait("job_1", watch=lambda now: seen.append(now.version)))
    assert (job.status, seen) == ("succeeded", [2, 3])


@pytest.mark.parametrize("reply", [httpx2.Response(200, text="<html>hello</html>"), httpx2.Response(200, json={"items": 3})])
def test_another_kind_of_service_is_one_sentence(reply: httpx2.Response) -> None:
    with pytest.raises(BitplanError, match=r"bitplan service|does not know"):
        Performer(script(reply)).run(job_verbs.jobs())


def test_an_error_that_is_no_problem_document_is_still_an_error() -> None:
    with pytest.raises(BitplanError, match="status 500 from"):
        Performer(script(httpx2.Response(500, text="<html>"))).run(read("/x"))
    with pytest.raises(BitplanError, match="status 404 from"):
        Performer(script(httpx2.Response(404, json=["odd"]))).run(read("/x"))
