"""Hostile requests by the thousand: schemathesis over the whole description of the service, one request after another and
in chains that follow its links.

The service has a profile and a plan, a worker that lives, and somebody who calls off every job at once, so that streams of
events end. An answer fails when its status is 500 or above, not described, or its body or headers are not as described.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import guests
from bitplan.api.jobs.presence import Presence
from guests import MODEL, Guests

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
)

PHASES = ("examples", "coverage", "fuzzing", "stateful")


@dataclass
class Fuzzed:
    """What came of it; `failures` maps a sentence to how often it was said."""

    requests: int = 0
    operations: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def and_also(self, other: Fuzzed) -> Fuzzed:
        """Both together."""
        return Fuzzed(
            self.requests + other.requests,
            self.operations | other.operations,
            self.statuses + other.statuses,
            self.phases + other.phases,
            self.failures + other.failures,
        )


@contextmanager
def fuzzed_service(home: Path) -> Iterator[Guests]:
    with guests.invited(home, require_keys=False) as service:
        service.nobody.post("/v1/plans", json={"model": MODEL, "budget": "25%"}).raise_for_status()
        presence, stop = Presence(service.store), threading.Event()
        presence.beat()
        caller = threading.Thread(target=_call_off, args=(service, presence, stop))
        caller.start()
        try:
            yield service
        finally:
            stop.set()
            caller.join()


def fuzz(app: ASGIApp, *, examples: int, seed: int, phases: Sequence[str] = PHASES) -> Fuzzed:
    """The examples of the description, what lies at the borders of its schemas (`coverage`), `examples` random requests for
    each operation and as many chains of requests."""
    done = Fuzzed()

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                done.requests += 1
                done.statuses[message["status"]] += 1
                if message["status"] >= 500:  # beside the check of the same, in case it is not made
                    done.failures[f"{scope['method']} {scope['path'][:80]!r} answered {message['status']}"] += 1
            await send(message)

        await app(scope, receive, seen if scope["type"] == "http" else send)

    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "generation": {"max-examples": examples, "database": "none"},
            "phases": {name: {"enabled": name in phases} for name in PHASES},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
        }
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", counted, config=config)
    stream = from_schema(schema).execute()
    for event in stream:
        if isinstance(event, (FatalError, NonFatalError)):
            error = event.value if isinstance(event, NonFatalError) else event.exception
            done.failures[f"{type(error).__name__}: {error}"[:400]] += 1
        elif isinstance(event, ScenarioFinished):
            done.phases[event.phase.value] += len(event.recorder.interactions)
            for case in event.recorder.cases.values():
                done.operations.add(case.value.operation.label)
            for found in event.recorder.checks.values():
                for check in found:
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        done.failures[f"{failure.operation}: {check.name}: {failure.title}: {failure.message}"[:600]] += 1
    return done


def _call_off(service: Guests, presence: Presence, stop: threading.Event) -> None:
    while not stop.wait(0.2):
        presence.beat()
        for job in service.store.jobs.active():
            service.store.jobs.cancel(job.id)
