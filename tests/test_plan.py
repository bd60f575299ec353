from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import fakes
import stranger
from bitplan.allocator import Plan, UsageError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("plan-v*.json"))
MIXED = fakes.plan("30%", "experts", "vllm", pins=((".*o_proj", "int8-row"),))


def verified() -> Plan:
    return MIXED.model_copy(update={"evidence": fakes.evidence(MIXED)})


@settings(deadline=None, max_examples=25)
@given(st.integers(20, 130), st.sampled_from(["tiny", "experts"]), st.sampled_from(["native", "vllm"]))
def test_json_and_back_is_the_identity(percent: int, model: str, target: str) -> None:
    plan = fakes.plan(f"{percent / 0.97}%", model, target)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_evidence_goes_along() -> None:
    again = Plan.from_json(verified().to_json())
    assert again == verified()
    assert again.evidence is not None
    assert again.evidence["passed"] is True


def test_the_id_is_the_hash_that_the_contract_names() -> None:
    """SHA-256 of model fingerprint, target, integer limits, pins, assignment and profile id, computed from the document."""
    for plan in (MIXED, fakes.plan(), verified()):
        d = json.loads(plan.to_json())
        key = [
            d["model"]["fingerprint"],
            d["target"],
            d["budget"]["limit_bytes"],
            sorted(map(list, d["pins"].items())),
            sorted(map(list, d["assignment"].items())),
            d["provenance"]["profile_id"],
        ]
        assert d["id"] == hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).hexdigest()


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MIXED.target = "native"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_plan_ever_written_stays_loadable(path: Path) -> None:
    """If this fails, the schema changed: read old documents on, and add a golden file of the new version."""
    text = path.read_text(encoding="utf-8")
    plan, document = Plan.from_json(text), json.loads(text)
    assert path.stem == f"plan-v{plan.schema_version}"
    written = json.loads(plan.to_json())
    assert {name: written[name] for name in document} == document  # nothing is lost
    stranger.check(text)
    frontier = plan.frontier()
    assert frontier[0]["bytes"] == plan.budget.minimum_bytes
    assert plan.explain(next(iter(plan.assignment)))["format"] in plan.certificate.formats


def test_there_is_a_golden_file_of_the_present_version() -> None:
    assert f"plan-v{MIXED.schema_version}" in [path.stem for path in GOLDEN]


class TestGarbage:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "null",
            "3",
            "[]",
            "{}",
            '"plan"',
            "[" * 100_000,
            '{"schema_version": 2}',
            '{"schema_version": 1}',
            "\0",
            "not JSON",
        ],
        ids=range(12),
    )
    def test_what_is_no_plan_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"this is not a plan document .*; give a file written by `bitplan plan --out`"):
            Plan.from_json(text)

    def test_a_document_cut_anywhere_is_refused(self) -> None:
        text = verified().to_json()
        for cut in range(0, len(text), 97):
            with pytest.raises(UsageError, match="not a plan document"):
                Plan.from_json(text[:cut])

    @pytest.mark.parametrize("name", [name for name, field in Plan.model_fields.items() if field.is_required()])
    def test_every_part_is_needed(self, name: str) -> None:
        document = json.loads(MIXED.to_json())
        del document[name]
        with pytest.raises(UsageError):
            Plan.from_json(json.dumps(document))

    @pytest.mark.parametrize(
        "change",
        [
            {"surplus": 1},
            {"schema_version": 2},
            {"schema_version": "1"},
            {"assignment": ["int4"]},
            {"budget": {"text": "1GB"}},
            {"target": None},
        ],
        ids=str,
    )
    def test_other_parts_are_refused(self, change: dict[str, Any]) -> None:
        document = json.loads(MIXED.to_json()) | change
        with pytest.raises(UsageError) as caught:
            Plan.from_json(json.dumps(document))
        assert "\n" not in str(caught.value)

    @given(st.text(max_size=60))
    def test_any_text_is_refused_with_a_sentence(self, text: str) -> None:
        with pytest.raises(UsageError, match="not a plan document"):
            Plan.from_json(text)
