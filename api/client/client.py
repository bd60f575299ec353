"""Client and AsyncClient: the verbs of bitplan over HTTP.

    client = Client("http://127.0.0.1:8000")
    plan = client.allocate("smollm2-135m", "60MiB")      # waits for the job, if there has to be one
    report = client.verify(plan)
    sweep = client.sweep(models=["smollm2-135m"], budgets=["3bpw", "4bpw"], metrics=["kl_fisher", "weight_error"])

    async with AsyncClient("http://127.0.0.1:8000") as client:
        plan = await client.allocate("smollm2-135m", "60MiB")
        async for job in client.events(job_id): ...

Each verb is written once, as a talk (see talk.py); the two clients differ in how they perform what a talk wants. Errors
are those of `bitplan.allocator.errors`, as if the work had been done here: an infeasible budget raises Infeasible with
the smallest and largest bytes, whether the service found out at once or a job did.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, overload

import httpx2

from ...allocator.errors import UsageError
from . import catalog
from . import exports as exported
from . import jobs as working
from . import plans as planned
from . import profiles as profiled
from . import sweeps as swept
from .persistence import Persistence, persistent
from .talk import Ask, Chunk, Course, Flow, Give, Open, Opened, Pause, Talk

P = ParamSpec("P")
T = TypeVar("T")
HERE = "http://127.0.0.1:8000"


class Verb(Generic[P, T]):
    """A talk as a method: of a Client it returns the result, of an AsyncClient it is awaited."""

    def __init__(self, talk: Callable[P, Talk[T]]) -> None:
        self._talk = talk
        self.__doc__ = talk.__doc__

    @overload
    def __get__(self, client: None, owner: type[Any]) -> Verb[P, T]: ...
    @overload
    def __get__(self, client: Client, owner: type[Any]) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type[Any]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type[Any]) -> Any:
        if client is None:
            return self

        @functools.wraps(self._talk)
        def verb(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run(self._talk(*args, **kwargs))

        return verb


class Stream(Generic[P, T]):
    """A flow as a method: of a Client it is iterated over, of an AsyncClient with `async for`."""

    def __init__(self, flow: Callable[P, Flow[T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, client: None, owner: type[Any]) -> Stream[P, T]: ...
    @overload
    def __get__(self, client: Client, owner: type[Any]) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type[Any]) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type[Any]) -> Any:
        if client is None:
            return self

        @functools.wraps(self._flow)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.iterate(self._flow(*args, **kwargs))

        return stream


class Verbs:
    """What both clients can do."""

    inspect = Verb(profiled.inspect)
    profile = Verb(profiled.profile)
    profiles = Verb(profiled.profiles)
    all_profiles = Stream(profiled.all_profiles)
    frontier = Verb(profiled.frontier)
    preview = Verb(profiled.preview)

    allocate = Verb(planned.allocate)
    submit = Verb(planned.submit)
    plan = Verb(planned.plan)
    plans = Verb(planned.plans)
    all_plans = Stream(planned.all_plans)
    delete = Verb(planned.delete)
    diff = Verb(planned.diff)
    certificate = Verb(planned.certificate)
    verify = Verb(planned.verify)
    execute = Verb(exported.execute)
    export = Verb(exported.export)
    exports = Verb(exported.exports)

    jobs = Verb(working.jobs)
    all_jobs = Stream(working.all_jobs)
    job = Verb(working.job)
    cancel = Verb(working.cancel)
    wait = Verb(working.wait)
    events = Stream(working.events)

    sweep = Verb(swept.sweep)
    submit_sweep = Verb(swept.submit_sweep)
    get_sweep = Verb(swept.get_sweep)
    sweeps = Verb(swept.sweeps)

    metrics = Verb(catalog.metrics)
    solvers = Verb(catalog.solvers)
    formats = Verb(catalog.formats)
    targets = Verb(catalog.targets)
    models = Verb(catalog.models)
    workers = Verb(catalog.workers)
    health = Verb(catalog.health)
    keys = Verb(catalog.keys)
    create_key = Verb(catalog.create_key)
    revoke_key = Verb(catalog.revoke_key)


class Client(Verbs):
    """A connection to a service; safe to share between threads. `url` is where it listens (default: BITPLAN_SERVER, or this
    machine), `api_key` proves who asks (default: BITPLAN_API_KEY), `timeout` is in seconds and of one attempt. A request
    that may succeed later is sent again up to `retries` times and for at most `patience` seconds; what waits for work that
    the service has taken on keeps trying for all of `patience`. `http` sends the requests; it may be an app under test.
    Raises UsageError for an address that is none."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        patience: float = 300.0,
        http: httpx2.Client | None = None,
    ) -> None:
        self._http = http or httpx2.Client(base_url=_address(url), timeout=timeout)
        self._persistence = Persistence(str(self._http.base_url), retries, patience)
        self._headers = _credentials(api_key)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def run(self, talk: Talk[T]) -> T:
        """Perform a talk and return its result."""
        with Course(persistent(talk, self._persistence)) as course, ExitStack() as stack:
            while (effect := course.effect) is not None:
                self._perform(effect, course, stack)
            return course.result

    def iterate(self, flow: Flow[T]) -> Iterator[T]:
        """Perform a flow; what it gives is iterated over."""
        with Course(persistent(flow, self._persistence)) as course, ExitStack() as stack:
            while (effect := course.effect) is not None:
                if isinstance(effect, Give):
                    yield effect.value
                    course.answer(None)
                else:
                    self._perform(effect, course, stack)

    def _perform(self, effect: Any, course: Course[Any], stack: ExitStack) -> None:
        try:
            answer = self._outcome(effect, stack)
        except Exception as error:
            course.fail(error)
        else:
            course.answer(answer)

    def _outcome(self, effect: Any, stack: ExitStack) -> Any:
        match effect:
            case Open():
                stack.close()  # what was opened before has been read, or broke
                response = self._http.send(_request(self._http, effect, self._headers), stream=True)
                stack.enter_context(closing(response))
                if response.is_error:
                    response.read()
                return Opened(response, response.iter_bytes())
            case Ask():
                return self._http.send(_request(self._http, effect, self._headers))
            case Chunk(opened):
                return next(opened.chunks, b"")
            case Pause(shortest, longest):
                return time.sleep(random.uniform(shortest, longest))
            case _:
                return time.monotonic()


class AsyncClient(Verbs):
    """As Client, for programs that use asyncio: verbs are awaited, streams iterated over with `async for`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        patience: float = 300.0,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        self._http = http or httpx2.AsyncClient(base_url=_address(url), timeout=timeout)
        self._persistence = Persistence(str(self._http.base_url), retries, patience)
        self._headers = _credentials(api_key)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def run(self, talk: Talk[T]) -> T:
        """Perform a talk and return its result."""
        with Course(persistent(talk, self._persistence)) as course:
            async with AsyncExitStack() as stack:
                while (effect := course.effect) is not None:
                    await self._perform(effect, course, stack)
            return course.result

    async def iterate(self, flow: Flow[T]) -> AsyncIterator[T]:
        """Perform a flow; what it gives is iterated over."""
        with Course(persistent(flow, self._persistence)) as course:
            async with AsyncExitStack() as stack:
                while (effect := course.effect) is not None:
                    if isinstance(effect, Give):
                        yield effect.value
                        course.answer(None)
                    else:
                        await self._perform(effect, course, stack)

    async def _perform(self, effect: Any, course: Course[Any], stack: AsyncExitStack) -> None:
        try:
            answer = await self._outcome(effect, stack)
        except Exception as error:
            course.fail(error)
        else:
            course.answer(answer)

    async def _outcome(self, effect: Any, stack: AsyncExitStack) -> Any:
        match effect:
            case Open():
                await stack.aclose()  # what was opened before has been read, or broke
                response = await self._http.send(_request(self._http, effect, self._headers), stream=True)
                await stack.enter_async_context(aclosing(response))
                if response.is_error:
                    await response.aread()
                return Opened(response, response.aiter_bytes())
            case Ask():
                return await self._http.send(_request(self._http, effect, self._headers))
            case Chunk(opened):
                return await anext(opened.chunks, b"")
            case Pause(shortest, longest):
                return await asyncio.sleep(random.uniform(shortest, longest))
            case _:
                return time.monotonic()


def _request(http: httpx2.Client | httpx2.AsyncClient, ask: Ask, headers: dict[str, str]) -> httpx2.Request:
    return http.build_request(ask.method, ask.path, json=ask.body, params=ask.query, headers={**headers, **ask.headers})


def _address(url: str | None) -> str:
    address = url or os.environ.get("BITPLAN_SERVER") or HERE
    try:
        known = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise UsageError(f"{address!r} is no address of a service ({error}); write for instance {HERE}") from error
    if known.scheme not in ("http", "https") or not known.host:
        raise UsageError(f"{address!r} is no address of a service; write for instance {HERE}")
    return address


def _credentials(api_key: str | None) -> dict[str, str]:
    key = api_key or os.environ.get("BITPLAN_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
