"""Logs: one line an event, JSON for machines and plain where a person watches, on standard error.

Every line bears the request's or the job's id and who asked (`structlog.contextvars.bind_contextvars`). Whatever looks
like one of our secrets, or like the password in a database's URL, is cut from every line, tracebacks included.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET = re.compile(r"\bbp_[A-Za-z0-9_-]{6,}")
PASSWORD = re.compile(r"(\w+://[^\s:/@]*):[^\s@]+@")

# Nothing is written before `log_to` was called: a program that only uses parts of bitplan keeps its streams to itself.
log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logging.getLogger("bitplan"),
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
)


def log_to(stream: TextIO | None = None) -> None:
    """Write this process's log, and the warnings of libraries, to `stream`; default: standard error, as it is now."""
    stream = stream or sys.stderr
    renderer: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if stream.isatty():
        renderer = [structlog.dev.ConsoleRenderer()]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper("iso", utc=True),
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer, _without_secrets],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("bitplan").setLevel(logging.INFO)


def _without_secrets(_logger: WrappedLogger, _method: str, line: EventDict | str) -> str:
    return PASSWORD.sub(r"\1:...@", SECRET.sub("bp_...", str(line)))
