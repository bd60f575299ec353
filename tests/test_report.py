"""The report: one file, readable without network, scripts or eyes; figures that say what the plan says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

import fakes
from bitplan.allocator import Plan, ProfileRequest
from bitplan.api.cells import unit_facts
from bitplan.api.curve import curve
from bitplan.api.layout import bit_map, bits_class, place
from bitplan.api.report import report_html
from bitplan.api.scatter import Point, drawn_line, measured_points, uniform_points
from bitplan.api.templates import render, svg_style
from bitplan.api.wording import certificate_sentences, number, price_per_mib, size


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return fakes.plan()


class Reader(HTMLParser):
    """Collects tags, checks that they nest, and keeps what a reader would see."""

    VOID = ("meta", "link", "br", "hr", "img", "input", "rect", "line", "circle", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


class TestPage:
    def test_it_is_one_file_that_loads_and_runs_nothing(self, plan: Plan) -> None:
        page = report_html(plan, fakes.evidence(plan))
        reader = read(page)
        names = {tag for tag, _ in reader.tags}
        assert not names & {"script", "link", "img", "iframe", "object", "form"}
        links = [value for _, attributes in reader.tags for name, value in attributes.items() if name in ("href", "src")]
        assert links == []
        assert "@import" not in page
        assert "url(" not in page
        assert any(attributes.get("http-equiv") == "Content-Security-Policy" for _, attributes in reader.tags)
        assert "prefers-color-scheme: dark" in page

    def test_promise_stands_beside_fact_and_plan_beside_rival(self, plan: Plan) -> None:
        report = fakes.evidence(plan)
        text = " ".join(read(report_html(plan, report)).text)
        for value in (report["loss"]["predicted"], report["loss"]["measured"], report["rivals"][0]["loss"]):
            assert number(value) in text
        assert f"{plan.predicted.bytes.total:,}" in text
        assert "equal to the byte" in text
        assert "Kept its promise." in text
        assert report["rivals"][0]["name"] in text
        assert "Perplexity" in text

    def test_a_broken_promise_is_said_first(self, plan: Plan) -> None:
        report = fakes.evidence(plan, passed=False)
        report["bytes"]["measured"] += 5
        report["kernel_checks"][0]["passed"] = False
        text = " ".join(read(report_html(plan, report)).text)
        assert "Broke its promise." in text
        assert "+5" in text
        assert "some disagree" in text
        assert text.index("Broke its promise.") < text.index("Where the bits go")

    def test_without_evidence_it_says_how_to_get_some(self, plan: Plan) -> None:
        text = " ".join(read(report_html(plan, None)).text)
        assert f"bitplan verify {plan.id[:12]}" in text
        assert "measured" not in text.split("Promise and fact")[1].split("The certificate")[0]

    def test_a_better_rival_is_no_broken_promise(self, plan: Plan) -> None:
        report = {**fakes.evidence(plan, passed=False), "promise_kept": True}
        assert "Kept its promise, but a uniform plan is better." in report_html(plan, report)

    def test_a_plan_without_rivals_or_errors_has_a_report(self, plan: Plan) -> None:
        report = fakes.evidence(plan) | {"rivals": [], "paired": None}
        report["task"]["rival"] = report["loss"]["measured_stderr"] = None
        page = report_html(plan, report)
        assert "Kept its promise." in page
        assert "None" not in page

    def test_the_untouched_model_has_a_report(self) -> None:
        untouched = fakes.plan("2GiB")
        text = " ".join(read(report_html(untouched, None)).text)
        assert untouched.notes[0] in text

    def test_a_svg_of_its_own_has_its_colours_filled_in(self) -> None:
        assert "var(" not in svg_style()
        assert ".hull { fill: none; stroke: #" in svg_style()

    def test_the_frontiers_page_is_one_file_too(self, plan: Plan) -> None:
        page = render("frontier.html", plan=plan, curve="", points=plan.frontier())
        assert not {"script", "link", "img"} & {tag for tag, _ in read(page).tags}

    def test_provenance_is_complete(self, plan: Plan) -> None:
        text = " ".join(read(report_html(plan, None)).text)
        for value in (plan.id, plan.model.fingerprint, plan.provenance.profile_id, plan.provenance.created_at):
            assert str(value) in text


class TestMap:
    @pytest.mark.parametrize(
        ("unit", "where"),
        [
            ("model.layers.3.self_attn.q_proj", ("model.layers", 3, "self_attn.q_proj", None)),
            ("model.layers.11.mlp.experts.7", ("model.layers", 11, "mlp.experts", 7)),
            ("model.layers.2.mlp.experts.40.down", ("model.layers", 2, "mlp.experts.down", 40)),
            ("vit.encoder.layer.0.output.dense", ("vit.encoder.layer", 0, "output.dense", None)),
            ("layer1.0.downsample.0", ("layer1", 0, "downsample.0", None)),
            ("features.5", ("features", 5, "weight", None)),
            ("lm_head", None),
        ],
    )
    def test_names_tell_the_place(self, unit: str, where: tuple[Any, ...] | None) -> None:
        assert place(unit) == where

    @pytest.mark.parametrize("model", ["tiny", "experts"])
    def test_every_unit_has_one_cell_with_its_bits(self, model: str) -> None:
        plan = fakes.plan(model=model)
        cells = re.findall(
            r'<span class="cell (b\d+)[^"]*" title="([^:]*): ([^,]*), [^"]*">(\d+)</span>', report_html(plan, None)
        )
        assert {unit: name for _, unit, name, _ in cells} == plan.assignment
        for style, _, name, printed in cells:
            bits = {"bf16": "16"}.get(name, name.partition("-")[0].removeprefix("int"))
            assert (style, printed) == (f"b{bits}", bits)

    def test_a_cell_says_what_its_unit_loses_and_would_save(self, plan: Plan) -> None:
        unit, fact = next((unit, fact) for unit, fact in unit_facts(plan).items() if fact.step is not None)
        title = next(text for text in re.findall(r'title="([^"]*)"', report_html(plan, None)) if text.startswith(f"{unit}: "))
        assert fact.step is not None
        for value in (fact.format, number(fact.loss), size(fact.bytes), fact.step.format, number(fact.step.saved)):
            assert value in title

    def test_experts_share_a_cell(self) -> None:
        (stack,) = bit_map(fakes.plan(model="experts")).stacks
        assert [cell.expert for cell in stack.cells[(0, "mlp.experts")]] == [0, 1, 2, 3]
        assert stack.layers == (0, 1, 2, 3)

    def test_colours_are_ordered_by_lightness_and_carry_their_text(self) -> None:
        """Colour blindness leaves lightness, so the order of bits is one of lightness; the bits stay readable on all."""
        style = report_html(fakes.plan(), None).partition("<style>")[2].partition("</style>")[0]
        light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", half)) for half in style.split("@media", 2)[:2])
        steps = [bits_class(bits) for bits in (*range(1, 9), 16)]
        for scheme, dark_from, rising in ((light, 6, False), (dark, 4, True)):
            levels = [luminance(scheme[step]) for step in steps]
            assert levels == sorted(levels, reverse=not rising)
            for step, level in zip(steps, levels, strict=True):
                text = luminance(scheme["t-high" if int(step[1:]) >= dark_from else "t-low"])
                assert (max(level, text) + 0.05) / (min(level, text) + 0.05) >= 4.5, (step, scheme[step])
            for text_name in ("ink", "soft", "accent", "good", "bad"):
                for ground in ("paper", "panel", "wash"):
                    pair = sorted((luminance(scheme[text_name]), luminance(scheme[ground])))
                    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text_name, ground)

    def test_every_number_of_bits_has_a_colour(self) -> None:
        style = report_html(fakes.plan(), None)
        for bits in (*range(1, 9), 12, 16, 32):
            assert f".{bits_class(bits)} {{" in style

    def test_error_bars_of_units_add_up_to_the_plans(self, plan: Plan) -> None:
        profile = fakes.report(ProfileRequest("tiny"))
        facts = unit_facts(plan, profile)
        assert sum(fact.stderr or 0.0 for fact in facts.values()) == pytest.approx(plan.predicted.stderr)
        assert sum(fact.loss for fact in facts.values()) == pytest.approx(plan.predicted.loss)
        assert sum(fact.bytes for fact in facts.values()) == plan.predicted.bytes.total - plan.predicted.bytes.fixed
        assert all(fact.stderr is None for fact in unit_facts(plan).values())

    def test_tied_units_tell_of_their_whole_choice(self) -> None:
        plan = fakes.plan("50%", target="vllm")
        facts, certificate = unit_facts(plan), plan.certificate
        item = next(index for index, units in enumerate(certificate.items) if len(units) > 1)
        for unit in certificate.items[item]:
            assert facts[unit].tied == len(certificate.items[item])
            assert facts[unit].bytes == certificate.cost[item][certificate.choice[item]]

    def test_no_step_of_a_plan_that_multipliers_prove_saves_more_than_its_price(self) -> None:
        for share in range(18, 60, 3):
            plan = fakes.plan(f"{share}%")
            steps = [fact.step.per_mib for fact in unit_facts(plan).values() if fact.step is not None]
            if plan.certificate.proof == "multipliers":
                assert max(steps) <= price_per_mib(plan) * (1 + 1e-9)


class TestCurve:
    def test_it_marks_the_plan_and_its_rivals_where_they_are(self, plan: Plan) -> None:
        points = [*uniform_points(plan), *measured_points(fakes.evidence(plan))]
        root = ElementTree.fromstring(curve([(p["bytes"], p["loss"]) for p in plan.frontier()], points, "nats"))
        titles = [title.text or "" for title in root.iter(f"{SVG}title")]
        for point in points:
            if point.loss > 0:
                assert any(text.startswith(f"{point.name}: {number(point.loss)}") for text in titles)
        description = root.findtext(f"{SVG}desc")
        assert description is not None
        assert "int4-g64 everywhere" in description

    def test_more_bytes_lie_further_right_and_less_loss_lower(self) -> None:
        figure = curve([], [Point("uniform", "a", 10**6, 0.5), Point("uniform", "b", 10**7, 0.01)], "nats")
        circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in ElementTree.fromstring(figure).iter(f"{SVG}circle")]
        assert sorted(circles) == sorted(circles, key=lambda place: place[1])
        assert len(circles) == 2

    def test_a_line_passes_through_its_vertices_and_is_straight_between_them(self) -> None:
        vertices = [(100.0, 9.0), (200.0, 4.0), (1000.0, 0.0)]
        line = drawn_line(vertices)
        assert set(vertices) <= set(line)
        for count, loss in line:
            exact = 9 - (count - 100) * 0.05 if count <= 200 else 4 - (count - 200) * 0.005
            assert loss == pytest.approx(exact, abs=1e-9)
        many = [(float(count), 1.0 / count) for count in range(1, 5000)]
        assert len(drawn_line(many)) < 300
        assert drawn_line(many)[0] == many[0]
        assert drawn_line(many)[-1] == many[-1]

    def test_nothing_to_draw_is_nothing(self) -> None:
        assert curve([(10, 0.0)], [], "nats") == ""

    def test_uniform_plans_are_those_every_unit_admits(self) -> None:
        plan = fakes.plan(pins=((".*embed_tokens", "int8-g64-asym"),))
        points = {point.name: point for point in uniform_points(plan)}
        assert points["bf16"].loss > 0  # the pinned unit keeps its pin
        assert points["bf16"].bytes < plan.model.native_bytes


class TestWording:
    def test_the_certificate_is_said_in_words(self, plan: Plan) -> None:
        sentences = " ".join(certificate_sentences(plan))
        assert number(plan.certificate.lower_bound) in sentences
        assert size(plan.budget.limit_bytes) in sentences
        assert f"{len(plan.certificate.items)} choices" in sentences

    def test_the_price_of_a_mib_is_the_slope_of_the_frontier(self, plan: Plan) -> None:
        points = plan.frontier()
        slopes = [(a["loss"] - b["loss"]) / (b["bytes"] - a["bytes"]) for a, b in pairwise(points)]
        assert min(slopes) * (1 << 20) * 0.999 <= price_per_mib(plan) <= max(slopes) * (1 << 20) * 1.001

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (0.021349, "0.0213"),
            (1.5, "1.50"),
            (123.4, "123"),
            (9999.4, "9999"),
            (3.2e-7, "3.20e-07"),
            (-4.456, "-4.46"),
        ],
    )
    def test_numbers_have_three_digits(self, value: float, text: str) -> None:
        assert number(value) == text

    @pytest.mark.parametrize(
        ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 30, "3.00 GiB"), (-2048, "-2.00 KiB")]
    )
    def test_sizes_are_binary(self, count: float, text: str) -> None:
        assert size(count) == text
