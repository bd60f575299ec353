"""A real browser before a real server: headless Chromium on a loopback socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MISSING = None if CHROMIUM.exists() and find_spec("playwright") else f"there is no {CHROMIUM} or no Playwright on this machine"


@contextmanager
def serving(application: FastAPI) -> Iterator[str]:
    """The address at which `application` is served by a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page with all that it complained of or asked for elsewhere."""

    page: Page
    base: str
    scripts: bool = True
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, context: BrowserContext, base: str, scripts: bool = True) -> Visit:
        page = context.new_page()
        visit = cls(page, base, scripts)
        page.set_default_timeout(90_000)  # of a machine that does much else; nothing waits in vain
        page.on("console", lambda said: visit._complain(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: visit._complain(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith((base, "data:")) else visit._complain(sent.url))
        page.on("requestfailed", lambda sent: visit._complain(f"{sent.url} {sent.failure}"))
        return visit

    def go(self, address: str) -> None:
        """Open a page and wait until its plots, if it has any, are drawn."""
        answer = self.page.goto(self.base + address)
        assert answer is not None
        assert answer.ok, address
        for place in self.page.locator("[data-spec]").all() if self.scripts else ():
            place.and_(self.page.locator("[data-ready]")).wait_for()

    def _complain(self, text: str) -> None:
        if "ERR_ABORTED" not in text:  # a stream or a request that the page itself ended
            self.complaints.append(f"{self.page.url}: {text}")
