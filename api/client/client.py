"""Client: the verbs of bitplan over HTTP.

    client = Client("http://127.0.0.1:8000")
    plan = client.allocate("smollm2-135m", "60MiB")      # waits for the job, if there has to be one
    report = client.verify(plan)

Errors are those of `bitplan.allocator.errors`, as if the work had been done here: an infeasible budget raises
Infeasible with the smallest and largest bytes, whether the service found out at once or a job did.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

import httpx2

from ...allocator import Plan
from ...allocator.errors import BitplanError, Interrupted
from ..problems import error_of
from ..schema import JobView, ListView, PlanBody, PlanSummary, ProfileBody, ProfileSummary

Watch = Callable[[JobView], None]
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 1.0


class Client:
    """A connection to a service. `http` is what sends the requests; it may be an app under test (its TestClient)."""

    def __init__(self, url: str = "http://127.0.0.1:8000", *, timeout: float = 30.0, http: httpx2.Client | None = None) -> None:
        self._http = http or httpx2.Client(base_url=url, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Plans

    @overload
    def allocate(
        self,
        model: str,
        budget: str,
        *,
        target: str = ...,
        metric: str = ...,
        solver: str = ...,
        formats: Sequence[str] | None = ...,
        pins: Mapping[str, str] | None = ...,
        calibration: str | None = ...,
        tokens: int = ...,
        seed: int = ...,
        rounding: str = ...,
        latency_ms: float | None = ...,
        latency_device: str | None = ...,
        verify: bool = ...,
        wait: Literal[True] = ...,
        watch: Watch | None = ...,
    ) -> Plan: ...

    @overload
    def allocate(
        self,
        model: str,
        budget: str,
        *,
        target: str = ...,
        metric: str = ...,
        solver: str = ...,
        formats: Sequence[str] | None = ...,
        pins: Mapping[str, str] | None = ...,
        calibration: str | None = ...,
        tokens: int = ...,
        seed: int = ...,
        rounding: str = ...,
        latency_ms: float | None = ...,
        latency_device: str | None = ...,
        verify: bool = ...,
        wait: Literal[False],
        watch: Watch | None = ...,
    ) -> Plan | JobView: ...

    def allocate(
        self,
        model: str,
        budget: str,
        *,
        target: str = "native",
        metric: str = "kl_fisher",
        solver: str = "best",
        formats: Sequence[str] | None = None,
        pins: Mapping[str, str] | None = None,
        calibration: str | None = None,
        tokens: int = 4096,
        seed: int = 0,
        rounding: str = "gptq",
        latency_ms: float | None = None,
        latency_device: str | None = None,
        verify: bool = False,
        wait: bool = True,
        watch: Watch | None = None,
    ) -> Plan | JobView:
        """The plan for a budget. Where the service has to measure first this waits for its job, calling `watch` with each
        state of it; with `wait` False it returns the job instead."""
        body = PlanBody(
            model=model,
            budget=budget,
            target=target,
            metric=metric,
            solver=solver,
            formats=None if formats is None else tuple(formats),
            pins=dict(pins or {}),
            calibration=calibration,
            tokens=tokens,
            seed=seed,
            rounding=rounding,
            latency_ms=latency_ms,
            latency_device=latency_device,
            verify=verify,
        )
        response = self._send("POST", "/v1/plans", body.model_dump())
        if response.status_code == 202:
            job = JobView.model_validate(response.json())
            return self.plan(self._result(job, watch)["plan_id"]) if wait else job
        plan = Plan.model_validate(response.json())
        verification = response.links.get("related", {}).get("url")
        if verification is None or not wait:
            return plan
        self._result(self.job(verification.rpartition("/")[2]), watch)
        return self.plan(plan.id)

    def plans(
        self, *, model: str | None = None, target: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> ListView[PlanSummary]:
        """One page of stored plans, newest first."""
        asked = {"model": model, "target": target, "cursor": cursor, "limit": limit}
        return ListView[PlanSummary].model_validate(self._get("/v1/plans", asked))

    def plan(self, plan_id: str) -> Plan:
        """A stored plan, by its id or a unique prefix."""
        return Plan.model_validate(self._get(f"/v1/plans/{plan_id}"))

    def delete(self, plan: Plan | str) -> None:
        """Forget a stored plan."""
        self._send("DELETE", f"/v1/plans/{_id(plan)}")

    def diff(self, a: Plan | str, b: Plan | str) -> dict[str, Any]:
        """The units in which two plans differ, with bytes and loss."""
        difference: dict[str, Any] = self._get(f"/v1/plans/{_id(a)}/diff/{_id(b)}")
        return difference

    def verify(self, plan: Plan | str, *, watch: Watch | None = None) -> dict[str, Any]:
        """Measure a stored plan: an ExecutionReport as JSON, whose `passed` says whether the promise was kept."""
        response = self._send("POST", f"/v1/plans/{_id(plan)}/verify")
        self._result(JobView.model_validate(response.json()), watch)
        evidence = self.plan(_id(plan)).evidence
        assert evidence is not None
        return evidence

    # Profiles

    def profile(
        self,
        model: str,
        *,
        metric: str = "kl_fisher",
        formats: Sequence[str] | None = None,
        calibration: str | None = None,
        tokens: int = 4096,
        seed: int = 0,
        rounding: str = "gptq",
        watch: Watch | None = None,
    ) -> dict[str, Any]:
        """The model's sensitivity report as JSON, measured if it never was."""
        palette = None if formats is None else tuple(formats)
        body = ProfileBody(
            model=model, metric=metric, formats=palette, calibration=calibration, tokens=tokens, seed=seed, rounding=rounding
        )
        response = self._send("POST", "/v1/profiles", body.model_dump())
        if response.status_code != 202:
            document: dict[str, Any] = response.json()
        else:
            result = self._result(JobView.model_validate(response.json()), watch)
            document = self._get(f"/v1/profiles/{result['profile_id']}")
        return document

    def profiles(self, *, model: str | None = None, cursor: str | None = None, limit: int = 50) -> ListView[ProfileSummary]:
        """One page of stored profiles, newest first."""
        asked = {"model": model, "cursor": cursor, "limit": limit}
        return ListView[ProfileSummary].model_validate(self._get("/v1/profiles", asked))

    def frontier(self, profile_id: str, *, target: str = "native") -> list[dict[str, float]]:
        """The best loss for every number of bytes, from a stored profile."""
        points: list[dict[str, float]] = self._get(f"/v1/profiles/{profile_id}/frontier", {"target": target})["points"]
        return points

    # Jobs

    def jobs(self, *, status: str | None = None, cursor: str | None = None, limit: int = 50) -> ListView[JobView]:
        """One page of jobs, newest first."""
        return ListView[JobView].model_validate(self._get("/v1/jobs", {"status": status, "cursor": cursor, "limit": limit}))

    def job(self, job_id: str) -> JobView:
        return JobView.model_validate(self._get(f"/v1/jobs/{job_id}"))

    def cancel(self, job: JobView | str) -> JobView:
        """Ask a job to stop."""
        return JobView.model_validate(self._send("POST", f"/v1/jobs/{_id(job)}/cancel").json())

    def wait(self, job: JobView | str, *, watch: Watch | None = None) -> JobView:
        """Wait until a job has ended, well or not; `watch` sees each state on the way."""
        pause, version = FIRST_POLL_SECONDS, 0
        while True:
            now = self.job(_id(job))
            if watch is not None and now.version > version:
                watch(now)
            version = now.version
            if now.finished:
                return now
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL_SECONDS)

    def _result(self, job: JobView, watch: Watch | None) -> dict[str, Any]:
        """The result of a job, or the error that ended it, raised."""
        ended = self.wait(job, watch=watch)
        if ended.error is not None:
            raise error_of(ended.error.model_dump())
        if ended.result is None:
            raise Interrupted(f"job {ended.id} was canceled; what was measured is kept")
        return ended.result

    def _get(self, path: str, asked: Mapping[str, Any] | None = None) -> Any:
        return self._send("GET", path, asked=asked).json()

    def _send(self, method: str, path: str, body: Any = None, asked: Mapping[str, Any] | None = None) -> httpx2.Response:
        """One request; problem details are raised as the errors they describe. A POST carries a key of its own, so that it
        may be sent again when the connection breaks before the answer."""
        parameters = {name: value for name, value in (asked or {}).items() if value is not None}
        headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        try:
            try:
                response = self._http.request(method, path, json=body, params=parameters, headers=headers)
            except httpx2.RemoteProtocolError:
                response = self._http.request(method, path, json=body, params=parameters, headers=headers)
        except httpx2.TransportError as error:
            where = self._http.base_url
            raise BitplanError(f"no answer from {where} ({error}); start the service with `bitplan serve`") from error
        if response.is_error:
            try:
                problem = response.json()
            except ValueError:
                problem = {"title": f"status {response.status_code} from {response.url}"}
            raise error_of(problem)
        return response


def _id(thing: Plan | JobView | str) -> str:
    return thing if isinstance(thing, str) else thing.id
