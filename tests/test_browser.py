"""The dashboard in a real Chromium: pages that complain of nothing, fit the screen, obey the keyboard and tell the truth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

import browsers
import fakes
import pages
from bitplan.api.app import create_app
from bitplan.api.schema import Progress
from bitplan.api.settings import Settings
from bitplan.api.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

pytestmark = pytest.mark.skipif(browsers.MISSING is not None, reason=browsers.MISSING or "")

SCREENS = ((1280, 900), (390, 844))
# What of a page is out of order for people who do not see it or do not use a mouse; each is a sentence.
AUDIT = """() => {
  const wrong = [];
  const say = (what, element) => wrong.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
  const named = (element) => (element.getAttribute("aria-label") || element.textContent || element.title || "").trim()
    || [...(element.labels ?? [])].map((label) => label.textContent.trim()).join("");
  const all = (query) => [...document.querySelectorAll(query)];
  if (!document.documentElement.lang) wrong.push("no language");
  if (all("h1").length !== 1) wrong.push(`${all("h1").length} headings of the first level`);
  if (all("main").length !== 1 || all("nav[aria-label]").length < 1) wrong.push("landmarks are missing");
  for (const element of all("a[href], button, input:not([type=hidden]), select, summary")) {
    if (!named(element)) say("no name", element);
  }
  for (const element of all("img:not([alt])")) say("no alternative text", element);
  for (const element of all("svg[role=img]")) {
    if (!element.getAttribute("aria-label") && !element.querySelector("title")) say("no title", element);
  }
  for (const element of all("table")) if (!element.caption && !element.closest("#vg-tooltip-element")) say("no caption", element);
  for (const element of all("th:not([scope])")) say("no scope", element);
  for (const element of all("progress:not([aria-label])")) say("no name", element);
  let level = 0;
  for (const heading of all("h1, h2, h3")) {
    const next = Number(heading.tagName[1]);
    if (next > level + 1) say("a level is skipped", heading);
    level = next;
  }
  const ids = all("[id]").map((element) => element.id);
  for (const id of new Set(ids.filter((id, index) => ids.indexOf(id) !== index))) wrong.push(`id ${id} twice`);
  for (const element of all("[aria-labelledby]")) {
    if (!document.getElementById(element.getAttribute("aria-labelledby"))) say("labelled by nothing", element);
  }
  return wrong;
}"""
CELLS, PAIRS = "a.cell", "cells => cells.map(cell => [cell.dataset.unit, cell.dataset.format])"
UNIT = "() => document.activeElement.dataset.unit"
FOCUS = """() => {
  const element = document.activeElement;
  const box = element.getBoundingClientRect();
  return {
    tag: element.tagName.toLowerCase(),
    name: (element.getAttribute("aria-label") || element.textContent || element.id).trim().slice(0, 60),
    cell: element.matches("a.cell"),
    range: element.matches("input[type=range]"),
    outlined: getComputedStyle(element).outlineStyle !== "none",
    shown: box.width > 0 && box.right > 0 && box.bottom > 0,
  };
}"""


@dataclass(frozen=True)
class Site:
    base: str
    store: Store
    filled: pages.Filled
    scripted: BrowserContext
    plain: BrowserContext  # runs no scripts
    http: TestClient

    @contextmanager
    def visit(self, address: str, scripts: bool = True) -> Iterator[browsers.Visit]:
        """A page of its own that must not complain, in a browser whose cache the tests share."""
        visit = browsers.Visit.begin(self.scripted if scripts else self.plain, self.base, scripts)
        visit.go(address)
        yield visit
        visit.page.close()
        assert visit.complaints == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fakes.install(monkeypatch)
        settings = Settings.from_environment(tmp_path_factory.mktemp("site"))
        application = create_app(settings)
        store = application.state.store
        with browsers.serving(application) as base, browsers.chromium() as browser:
            http = TestClient(application, base_url=base)  # no lifespan of its own: the server's is under way
            scripted = browser.new_context(permissions=["clipboard-read", "clipboard-write"], reduced_motion="reduce")
            plain = browser.new_context(java_script_enabled=False)
            yield Site(base, store, pages.fill(http, store, settings), scripted, plain, http)


def test_every_page_fits_every_screen_and_complains_of_nothing(site: Site) -> None:
    with site.visit("/") as visit:
        for name, address in site.filled.addresses().items():
            visit.go(address)
            assert visit.page.evaluate(AUDIT) == [], name
            for width, height in SCREENS:
                visit.page.set_viewport_size({"width": width, "height": height})
                for scheme in ("light", "dark"):
                    visit.page.emulate_media(color_scheme=scheme)
                    across = visit.page.evaluate("() => document.documentElement.scrollWidth")
                    assert across <= width, (name, width, scheme)


def test_the_plan_page_has_a_cell_for_every_unit(site: Site) -> None:
    with site.visit("/about") as visit:
        for plan in (site.filled.experts, site.filled.plan):
            visit.go(f"/plans/{plan.id}")
            found = visit.page.eval_on_selector_all(CELLS, PAIRS)
            assert len(found) == len(plan.assignment)
            assert dict(found) == plan.assignment
            assert visit.page.locator("#plot svg .mark-symbol path").count() > 3  # uniform plans, stored plans, this plan
        cell = visit.page.locator("a.cell[data-next]").nth(4)
        cell.hover()
        for name in ("unit", "loss", "bytes", "next"):
            assert (cell.get_attribute(f"data-{name}") or "?") in said(visit.page, name)
        assert "±" in said(visit.page, "loss")
        visit.page.get_by_role("button", name="Copy the command").click()
        visit.page.get_by_role("button", name="Copied").wait_for()
        copied = visit.page.evaluate("() => navigator.clipboard.readText()")
        assert copied == visit.page.locator("#curl").text_content()
        assert copied.startswith(f"curl {site.base}/v1/plans")


def test_the_slider_shows_the_very_plan_that_a_post_returns(site: Site) -> None:
    with site.visit(f"/profiles/{site.filled.profile}") as visit:
        page, seen = visit.page, set()
        slider = page.locator("#budget")
        slider.focus()
        for key in ("Home", "PageUp", "PageUp", "ArrowRight", "End", "PageDown"):
            page.keyboard.press(key)
            budget = slider.input_value()
            preview = page.locator(f"#preview[data-budget='{budget}']")
            preview.wait_for()
            made = site.http.post("/v1/plans", json={"model": "tiny", "budget": budget})
            assert made.status_code in (200, 201)
            assert preview.get_attribute("data-plan") == made.json()["id"]
            assert dict(page.eval_on_selector_all(f"#preview {CELLS}", PAIRS)) == made.json()["assignment"]
            assert page.locator("[data-slider-text]").text_content() == slider.get_attribute("aria-valuetext")
            seen.add(made.json()["id"])
        assert len(seen) >= 4
        page.locator("#exact").fill("1%")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        assert "raise the budget" in (page.get_by_role("alert").text_content() or "")
        visit.complaints = [text for text in visit.complaints if "422" not in text]  # Chromium notes the refusal itself


def test_a_jobs_bar_moves_to_done(site: Site) -> None:
    with site.visit(f"/plans/{site.filled.other.id}") as visit:
        page, store = visit.page, site.store
        page.get_by_role("button", name="Verify").click()
        bar = page.locator(".job progress")
        bar.wait_for()
        (job,) = [job for job in store.jobs.active() if job.kind == "verify"]
        store.jobs.begin(job.id)
        for done in (1, 3):
            store.jobs.report(job.id, Progress(stage="verify", done=done, total=4, fraction=done / 4, eta_seconds=9.0))
            page.wait_for_selector(f"#{job.id} [data-field=stage]:has-text('verify, {done} of 4, about 9 s left')")
            assert bar.evaluate("bar => bar.value") == done / 4
        assert "75 percent" in (page.locator(f"#{job.id} [role=status]").text_content() or "")
        store.attach_evidence(site.filled.other.id, fakes.evidence(site.filled.other))
        store.jobs.finish(job.id, {"href": f"/v1/plans/{site.filled.other.id}"})
        page.locator(f"#{job.id} .badge.succeeded").wait_for()
        assert page.locator(f"#{job.id} progress").count() == 0
        page.locator(f"#{job.id}").get_by_role("link", name="Open the plan").click()
        page.get_by_text("Kept its promise.").wait_for()


def test_a_failed_job_ends_with_its_sentence(site: Site) -> None:
    job = site.store.jobs.submit("inspect", {"model": "broken"}, "local")
    with site.visit("/jobs") as visit:
        visit.page.locator(f"#{job.id} progress").wait_for()
        site.store.jobs.begin(job.id)
        problem = {
            "type": "/problems/model-unreadable",
            "title": "t",
            "status": 422,
            "detail": "<b>cut</b>; fetch it again",
        }
        site.store.jobs.finish(job.id, problem=problem)
        visit.page.locator(f"#{job.id}").get_by_text("<b>cut</b>; fetch it again").wait_for()


def test_the_keyboard_reaches_everything_and_the_focus_is_seen(site: Site) -> None:
    with site.visit(f"/plans/{site.filled.plan.id}") as visit:
        page, stops = visit.page, []
        for stop in walk(page, "Tab", 60):
            assert stop["outlined"], stop
            assert stop["shown"], stop
            stops.append(stop)
            if stop["cell"]:
                break
        names = [stop["name"] for stop in stops]
        assert names[0] == "Skip to content"
        assert {"Plans", "Frontiers", "Sweeps", "Jobs", "Models", "API", "Measure again", "Export to bitplan"} <= set(names)
        assert page.locator("a.cell[tabindex='0']").count() == 1  # the map is one stop
        first = page.evaluate(UNIT)
        for stop in (*walk(page, "ArrowDown", 1), *walk(page, "ArrowRight", 1)):
            assert stop["cell"]
            assert stop["outlined"]
        unit = page.evaluate(UNIT)
        assert unit != first
        assert said(page, "unit") == unit
        assert not next(walk(page, "Tab", 1))["cell"]
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(UNIT) == unit
        visit.go(f"/profiles/{site.filled.profile}")
        assert any(stop["range"] and stop["outlined"] for stop in walk(page, "Tab", 40))


def test_two_picked_plans_are_compared_and_filters_change_the_address(site: Site) -> None:
    with site.visit("/") as visit:
        page = visit.page
        page.get_by_label("Target").select_option("vllm")
        page.get_by_text("No plan matches.").wait_for()
        assert "target=vllm" in page.url
        visit.go("/")
        page.get_by_role("button", name="Compare").press("Enter")
        page.get_by_text("Pick two plans to compare them.").wait_for()
        for plan in (site.filled.experts, site.filled.plan, site.filled.other):  # the third pick lets go of the first
            page.locator(f"input[value='{plan.id}']").check()
        page.get_by_role("button", name="Compare").press("Enter")
        page.locator(".cell.changed[data-unit]").first.wait_for()
        a, b = site.filled.plan.assignment, site.filled.other.assignment
        assert page.locator("a.cell.changed").count() == 2 * sum(a[unit] != b[unit] for unit in a)


def test_without_scripts_everything_is_a_link_or_a_form(site: Site) -> None:
    with site.visit("/", scripts=False) as visit:
        page = visit.page
        visit.go(f"/plans/{site.filled.plan.id}")
        page.locator("#plot svg").wait_for()
        page.locator("a.cell").nth(3).click()
        assert said(page, "unit") in site.filled.plan.assignment
        visit.go(f"/profiles/{site.filled.profile}")
        page.get_by_label("Or say it").fill("30%")
        page.get_by_role("button", name="Show", exact=True).last.click()
        made = site.http.post("/v1/plans", json={"model": "tiny", "budget": "30%"}).json()
        assert page.locator("#preview").get_attribute("data-plan") == made["id"]
        page.get_by_role("button", name="Keep this plan").click()
        page.wait_for_url(f"**/plans/{made['id']}")


def walk(page: Page, key: str, most: int) -> Iterator[dict[str, Any]]:
    """Press a key and look at what has the focus, again and again."""
    for _ in range(most):
        page.keyboard.press(key)
        yield page.evaluate(FOCUS)


def said(page: Page, field: str) -> str:
    """What the panel beside the map says of the unit."""
    return page.locator(f"[data-unit-panel] [data-field={field}]").text_content() or ""
