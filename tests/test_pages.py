"""The dashboard as a browser gets it: what pages say, what they refuse to run, and how they ask for work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient

import fakes
import pages
from bitplan.allocator import Plan, ProfileRequest
from bitplan.api.cells import unit_facts
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from bitplan.api.wording import loss, number, size
from test_report import read

READER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}  # as a browser sends it


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pages.Service]:
    with pages.service(tmp_path_factory.mktemp("pages")) as service:
        yield service


@pytest.fixture
def look(service: pages.Service) -> TestClient:
    """A client of a filled service; tests that only look share it."""
    return service.http


@pytest.fixture
def filled(service: pages.Service) -> pages.Filled:
    return service.filled


@pytest.fixture
def own(http: TestClient, store: Store, settings: Settings) -> pages.Filled:
    """What is in a store of the test's own."""
    return pages.fill(http, store, settings)


def cells(page: str) -> list[dict[str, str]]:
    """The attributes of every cell of the maps on a page, with the printed bits."""
    found = re.findall(r'<a class="cell ([^"]*)"([^>]*)>(\d+)</a>', page)
    return [
        {"class": style, "text": text} | {name: unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', rest)}
        for style, rest, text in found
    ]


class TestEveryPage:
    def test_all_are_whole_and_load_nothing_from_elsewhere(self, look: TestClient, filled: pages.Filled) -> None:
        for name, address in filled.addresses().items():
            page = look.get(address, headers=READER)
            assert page.status_code == 200, name
            assert page.headers["content-type"].startswith("text/html")
            tags = read(page.text).tags
            for tag, attributes in tags:
                for attribute in ("href", "src", "action", "hx-get"):
                    target = urlsplit(attributes.get(attribute) or "")
                    assert (target.scheme, target.netloc) == ("", ""), (name, tag, attributes)
                assert not [attribute for attribute in attributes if attribute.startswith("on") or attribute == "style"], name
            assert [tag for tag, _ in tags].count("h1") == 1, name
            assert "style" not in {tag for tag, _ in tags}, name
            scripts = [attributes for tag, attributes in tags if tag == "script"]
            assert all("src" in script or script["type"] == "application/json" for script in scripts), name
            assert all(script["integrity"] for script in scripts if "src" in script), name

    def test_the_policy_lets_nothing_inline_run(self, look: TestClient, filled: pages.Filled) -> None:
        for address in [*filled.addresses().values(), "/nowhere"]:
            policy = look.get(address, headers=READER).headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self'" in policy
            assert "unsafe" not in policy

    def test_names_are_text_wherever_they_stand(self, look: TestClient, filled: pages.Filled) -> None:
        shown = 0
        for name, address in filled.addresses().items():
            page = look.get(address, headers=READER).text
            assert "<script>alert" not in page, name
            for _, attributes in read(page).tags:
                assert "onmouseover" not in attributes, name
            shown += "&lt;script&gt;alert(1)" in page
        assert shown >= 5  # plans, its plan, sweeps, the sweep, the job

    def test_an_empty_store_says_what_to_do_next(self, http: TestClient) -> None:
        for address, hint in (
            ("/", "bitplan plan smollm2-135m"),
            ("/profiles", "bitplan profile smollm2-135m"),
            ("/sweeps", "Client().sweep("),
            ("/jobs", "No job yet"),
            ("/models", "bitplan inspect smollm2-135m"),
        ):
            page = http.get(address, headers=READER)
            assert page.status_code == 200
            assert hint in page.text

    def test_browsers_get_errors_as_pages_and_programs_as_problems(self, look: TestClient, filled: pages.Filled) -> None:
        for address in ("/nowhere", "/plans/none", "/profiles/none", "/sweeps/none", "/jobs/none", "/models/none"):
            page = look.get(address, headers=READER)
            assert page.status_code == 404
            assert page.headers["content-type"].startswith("text/html")
            assert read(page.text).tags
            problem = look.get(address)
            assert (problem.status_code, problem.headers["content-type"]) == (404, "application/problem+json")
        assert look.get("/v1/plans/none", headers=READER).headers["content-type"] == "application/problem+json"
        refused = look.get(f"/profiles/{filled.profile}?budget=1%25", headers=READER)
        assert refused.status_code == 422
        assert "raise the budget" in refused.text

    def test_pages_are_no_part_of_the_described_api(self, http: TestClient) -> None:
        paths = http.get("/openapi.json").json()["paths"]
        assert not [path for path in paths if path == "/" or path.startswith(("/plans", "/profiles", "/static", "/about"))]


class TestPlans:
    def test_filters_narrow_the_list(self, look: TestClient, filled: pages.Filled) -> None:
        for query, expected in (
            ("model=tiny", {filled.plan.id, filled.other.id}),
            ("model=tiny&budget=28%25", {filled.other.id}),
            ("verified=passed", {filled.plan.id, filled.evil.id}),
            ("target=vllm", set()),
            ("metric=kl_fisher&model=experts", {filled.experts.id}),
        ):
            page = look.get(f"/?{query}", headers=READER).text
            assert set(re.findall(r'href="/plans/(\w{64})"', page)) == expected, query
        assert "No plan matches" in page or expected

    def test_headings_sort_and_a_second_click_turns_round(self, look: TestClient, filled: pages.Filled) -> None:
        first = look.get("/", params={"sort": "bytes"}, headers=READER).text
        order = re.findall(r'href="/plans/(\w{64})"', first)
        assert order[-1] in (filled.other.id, filled.experts.id)
        assert 'aria-sort="ascending"' in first
        turned = re.search(r'aria-sort="ascending"><a href="([^"]*)"', first)
        assert turned is not None
        second = look.get(unescape(turned[1]), headers=READER).text
        assert 'aria-sort="descending"' in second
        assert re.findall(r'href="/plans/(\w{64})"', second)[0] == order[-1]
        assert look.get("/?sort=luck", headers=READER).status_code == 422

    def test_pages_follow_each_other(self, http: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bitplan.api.dashboard.plans.PAGE", 2)
        plan = fakes.plan()
        for number_ in range(5):
            store.put_plan(plan.model_copy(update={"id": f"{number_}" * 64}))
        seen: list[str] = []
        address = "/?model=tiny&sort=created_at"
        for _ in range(3):
            page = http.get(address, headers=READER).text
            seen += re.findall(r'href="/plans/(\w{64})"', page)
            following = re.search(r'<a href="([^"]*)" rel="next"', page)
            address = unescape(following[1]) if following else ""
        assert [one[0] for one in seen] == ["0", "1", "2", "3", "4"]
        assert address == ""


class TestPlan:
    @pytest.mark.parametrize("which", ["plan", "experts"])
    def test_every_unit_has_one_cell_that_says_what_is_known_of_it(
        self, look: TestClient, service: pages.Service, filled: pages.Filled, which: str
    ) -> None:
        plan: Plan = getattr(filled, which)
        profile, _ = service.store.profile(plan.provenance.profile_id or "")
        facts = unit_facts(plan, profile)
        found = cells(look.get(f"/plans/{plan.id}", headers=READER).text)
        assert {cell["data-unit"]: cell["data-format"] for cell in found} == plan.assignment
        assert len(found) == len(plan.assignment)
        for cell in found:
            fact = facts[cell["data-unit"]]
            assert fact.stderr is not None
            assert cell["data-loss"] == loss(fact.loss, fact.stderr)
            assert cell["data-bytes"] == size(fact.bytes)
            assert cell.get("data-next") == (None if fact.step is None else fact.step.format)
            assert cell["text"] == cell["data-bits"]
            assert cell["aria-label"] == f"{fact.unit}: {cell['text']} bits"

    def test_a_unit_can_be_asked_for_without_scripts(self, look: TestClient, filled: pages.Filled) -> None:
        unit = "model.layers.0.self_attn.q_proj"
        fact = unit_facts(filled.plan)[unit]
        page = look.get(f"/plans/{filled.plan.id}", params={"unit": unit}, headers=READER).text
        panel = page.partition("data-unit-panel")[2].partition("</dl>")[0]
        assert unit in panel
        assert number(fact.loss) in panel
        assert size(fact.bytes) in panel
        assert look.get(f"/plans/{filled.plan.id}?unit=nothing", headers=READER).status_code == 200

    def test_parts_of_the_bytes_add_up(self, look: TestClient, filled: pages.Filled) -> None:
        page = look.get(f"/plans/{filled.plan.id}", headers=READER).text
        table = page.partition("By what they are")[2].partition("</table>")[0]
        counts = [int(text.replace(",", "")) for text in re.findall(r'<td class="right">([\d,]+)</td>', table)]
        assert sum(counts[:-1]) == counts[-1] == filled.plan.predicted.bytes.total

    def test_the_lines_to_make_it_again_make_it_again(self, http: TestClient, settings: Settings, store: Store) -> None:
        import json
        import shlex

        fakes.profile_model(ProfileRequest("tiny", seed=3, tokens=512), home=settings.home)
        asked = {"model": "tiny", "budget": "35%", "seed": 3, "tokens": 512, "pins": {"model.embed_tokens": "int8-g64-asym"}}
        plan = http.post("/v1/plans", json=asked).json()
        page = unescape(http.get(f"/plans/{plan['id']}", headers=READER).text)
        command = page.partition('id="curl"')[2].partition("<code>")[2].partition("</code>")[0]
        words = shlex.split(command.replace("\\\n", " "))
        assert words[:2] == ["curl", "http://testserver/v1/plans"]
        again = http.post("/v1/plans", content=words[-1], headers={"content-type": "application/json"})
        assert again.json()["id"] == plan["id"]
        lines = page.partition('id="python"')[2].partition("<code>")[2].partition("</code>")[0]
        sent: dict[str, Any] = {}

        class Client:
            def __init__(self, url: str) -> None:
                assert url == "http://testserver"

            def allocate(self, model: str, **settings: Any) -> Plan:
                sent.update(settings, model=model)
                return Plan.model_validate(http.post("/v1/plans", json=sent).json())

        exec(lines.replace("from bitplan import Client", ""), {"Client": Client})
        assert json.loads(words[-1]) == sent

    def test_verifying_and_exporting_ask_for_jobs(self, http: TestClient, store: Store, own: pages.Filled) -> None:
        for path, form, kind in (("verify", None, "verify"), ("exports", {"to": "bitplan"}, "execute")):
            asked = http.post(f"/plans/{own.other.id}/{path}", data=form, headers=READER, follow_redirects=False)
            assert (asked.status_code, asked.headers["location"]) == (303, f"/plans/{own.other.id}#jobs")
            (job,) = [job for job in store.jobs.active() if job.kind == kind]
            assert f'data-events="/v1/jobs/{job.id}/events"' in http.get(f"/plans/{own.other.id}", headers=READER).text
        refused = http.post(f"/plans/{own.other.id}/exports", data={"to": "gold"}, headers=READER)
        assert refused.status_code == 422
        assert "gold" in refused.text

    def test_a_plan_whose_profile_is_gone_has_a_page(self, http: TestClient, store: Store) -> None:
        store.put_plan(fakes.plan())
        page = http.get(f"/plans/{fakes.plan().id}", headers=READER)
        assert page.status_code == 200
        assert "units have no error bars" in page.text


class TestCompare:
    def test_cells_that_differ_are_marked_in_both(self, look: TestClient, filled: pages.Filled) -> None:
        page = look.get(filled.addresses()["compare"], headers=READER).text
        a, b = filled.plan.assignment, filled.other.assignment
        differing = {unit for unit in a if a[unit] != b[unit]}
        marked = [cell["data-unit"] for cell in cells(page) if "changed" in cell["class"]]
        assert sorted(marked) == sorted([*differing, *differing])
        assert 0 < len(differing) < len(a)

    def test_it_takes_two_plans_of_one_model(self, look: TestClient, filled: pages.Filled) -> None:
        one = look.get(f"/compare?plan={filled.plan.id}", headers=READER)
        assert (one.status_code, "pick two" in one.text) == (422, True)
        strangers = look.get(f"/compare?plan={filled.plan.id}&plan={filled.experts.id}", headers=READER)
        assert (strangers.status_code, "different models" in strangers.text) == (409, True)


class TestFrontier:
    def test_a_preview_is_the_plan_that_a_post_returns(self, http: TestClient, own: pages.Filled) -> None:
        for budget in ("20%", "33%", "75%", "100%", "200%"):
            part = http.get(f"/profiles/{own.profile}/preview", params={"budget": budget}, headers=READER)
            plan = http.post("/v1/plans", json={"model": "tiny", "budget": budget}).json()
            assert f'data-plan="{plan["id"]}"' in part.text
            assert {cell["data-unit"]: cell["data-format"] for cell in cells(part.text)} == plan["assignment"]

    def test_keeping_stores_the_plan_that_was_shown(self, http: TestClient, store: Store, own: pages.Filled) -> None:
        part = http.get(f"/profiles/{own.profile}/preview?budget=150000", headers=READER).text
        shown = re.search(r'data-plan="(\w+)"', part)
        assert shown is not None
        form = {"budget": "150000", "target": "native"}
        kept = http.post(f"/profiles/{own.profile}/plans", data=form, headers=READER, follow_redirects=False)
        assert (kept.status_code, kept.headers["location"]) == (303, f"/plans/{shown[1]}")
        assert store.plan(shown[1]).assignment == {cell["data-unit"]: cell["data-format"] for cell in cells(part)}

    def test_a_budget_that_cannot_be_met_is_said_in_place(self, look: TestClient, filled: pages.Filled) -> None:
        headers = {**READER, "hx-request": "true"}
        refused = look.get(f"/profiles/{filled.profile}/preview?budget=1", headers=headers)
        assert refused.status_code == 422
        assert refused.text.startswith('<section id="preview">')
        assert "raise the budget" in refused.text

    def test_other_targets_have_frontiers_of_their_own(self, look: TestClient, filled: pages.Filled) -> None:
        page = look.get(f"/profiles/{filled.profile}?target=vllm", headers=READER)
        assert page.status_code == 200
        assert {cell.get("data-tied") for cell in cells(page.text)} > {None}
        assert look.get(f"/profiles/{filled.profile}?target=moon", headers=READER).status_code == 422


class TestAsking:
    def test_a_form_makes_a_plan_at_once_or_a_job(self, http: TestClient, store: Store, measured: str) -> None:
        made = http.post("/new", data={"model": "tiny", "budget": "30%"}, headers=READER, follow_redirects=False)
        assert made.status_code == 303
        assert made.headers["location"].startswith("/plans/")
        waits = http.post("/new", data={"model": "unseen", "budget": "30%"}, headers=READER, follow_redirects=False)
        assert waits.headers["location"] == f"/jobs/{store.jobs.active()[0].id}"
        page = http.get(waits.headers["location"], headers=READER).text
        assert "waiting for a worker" in page

    def test_a_form_that_cannot_be_comes_back_with_the_reason_and_what_was_typed(self, http: TestClient, measured: str) -> None:
        for form, reason in (
            ({"model": "tiny", "budget": "1%"}, "needs at least"),
            ({"model": "tiny", "budget": "much"}, "much"),
            ({"model": "", "budget": "30%"}, "model"),
        ):
            refused = http.post("/new", data=form, headers=READER)
            assert refused.status_code == 422
            alert = refused.text.partition('role="alert">')[2].partition("<")[0]
            assert reason in unescape(alert)
            assert f'value="{form["budget"]}"' in refused.text

    def test_a_job_can_be_canceled_from_its_page(self, http: TestClient, store: Store) -> None:
        job = store.jobs.submit("inspect", {"model": "tiny"}, "local")
        asked = http.post(f"/jobs/{job.id}/cancel", headers=READER, follow_redirects=False)
        assert (asked.status_code, asked.headers["location"]) == (303, f"/jobs/{job.id}")
        assert store.jobs.get(job.id).status == "canceled"

    def test_forms_of_other_sites_are_refused(self, look: TestClient, filled: pages.Filled) -> None:
        headers = {**READER, "origin": "https://elsewhere.example"}
        assert look.post(f"/plans/{filled.other.id}/verify", headers=headers).status_code == 403


class TestLists:
    def test_a_sweep_is_a_grid_of_its_plans(self, look: TestClient, filled: pages.Filled) -> None:
        page = look.get(f"/sweeps/{filled.sweep}", headers=READER).text
        grid = page.partition("Models by budgets")[2]
        assert f'href="/plans/{filled.plan.id}"' in grid
        assert "failed" in grid
        assert grid.count("queued") == 2

    def test_a_failed_job_says_why(self, look: TestClient, filled: pages.Filled) -> None:
        for address in ("/jobs", "/jobs?status=failed", f"/jobs/{filled.failed_job}"):
            assert "is not available" in look.get(address, headers=READER).text
        assert "is not available" not in look.get("/jobs?status=running", headers=READER).text

    def test_a_model_shows_its_units_and_what_was_made_of_them(self, look: TestClient, filled: pages.Filled) -> None:
        page = look.get(f"/models/{filled.plan.model.fingerprint}", headers=READER).text
        for unit in filled.plan.assignment:
            assert f">{unit}</td>" in page
        assert "64 × 64" in page
        assert f'href="/plans/{filled.other.id}"' in page
        assert f'href="/profiles/{filled.profile}"' in page
