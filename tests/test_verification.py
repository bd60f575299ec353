from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitplan.allocator import (
    ExecutionReport,
    Plan,
    UsageError,
    allocate,
    executed,
    inspect_model,
    kernel_checks,
    known_profile,
    load_executed,
    plan_from_profile,
    verify,
)
from bitplan.allocator import verification as verifying
from bitplan.allocator.execution import prepare_plan
from bitplan.kernels import linear
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.calibration import Part, read_text
from bitplan.sensitivity.units import Inventory
from shelf import KINDS, Shelf


def altered(plan: Plan, change: Callable[[dict[str, Any]], object]) -> Plan:
    document = json.loads(plan.to_json())
    change(document)
    return Plan.from_json(json.dumps(document))


def stored(found: Inventory, assignment: dict[str, str]) -> int:
    return found.fixed_bytes + sum(unit.stored_bytes(FORMATS[assignment[unit.name]]) for unit in found.units)


@pytest.mark.parametrize("kind", KINDS)
class TestReport:
    def test_promise_and_fact_stand_side_by_side(self, kind: str, shelf: Shelf) -> None:
        plan, report = shelf.plan(kind), shelf.report(kind)
        assert report.plan_id == plan.id
        assert report.promise_kept
        total = plan.predicted.bytes.total
        assert report.bytes["predicted"] == report.bytes["measured"] == sum(report.bytes["by_part"].values()) == total
        assert report.bytes["file_bytes"] > total
        assert report.loss["predicted"] == plan.predicted.loss
        assert report.loss["predicted_stderr"] == plan.predicted.stderr
        assert report.quantity == plan.predicted.quantity
        for number in (report.loss["measured"], report.loss["measured_stderr"]):
            assert number is not None
            assert number > 0
        assert report.examples >= 4
        assert report.device == "cpu"
        assert {"bitplan", "torch"} <= report.versions.keys()

    def test_the_data_was_used_for_nothing_else(self, kind: str, shelf: Shelf) -> None:
        plan, report = shelf.plan(kind), shelf.report(kind)
        calibration = prepare_plan(plan, shelf.home).calibration
        assert calibration is not None
        assert report.data_fingerprint == calibration.verify.fingerprint
        assert plan.provenance.data_fingerprint == calibration.estimate.fingerprint
        assert not calibration.verify.digests & (calibration.estimate.digests | calibration.render.digests)

    def test_rivals_fit_the_budget_and_stand_best_first(self, kind: str, shelf: Shelf) -> None:
        plan, report = shelf.plan(kind), shelf.report(kind)
        assert 1 <= len(report.rivals) <= 2
        assert [rival["loss"] for rival in report.rivals] == sorted(rival["loss"] for rival in report.rivals)
        assert all(rival["bytes"] <= plan.budget.limit_bytes and rival["loss_stderr"] > 0 for rival in report.rivals)
        assert report.paired is not None
        difference = report.loss["measured"] - report.rivals[0]["loss"]
        # The mean of differences is the difference of means, but for the last digits of the sums.
        assert report.paired["difference"] == pytest.approx(difference, rel=1e-9, abs=1e-15)

    def test_passed_and_the_verdict_follow_from_the_numbers(self, kind: str, shelf: Shelf) -> None:
        report = shelf.report(kind)
        assert report.paired is not None
        worse = report.paired["difference"] > 2 * report.paired["stderr"]
        assert report.passed == (report.promise_kept and not worse)
        assert report.rivals[0]["name"] in report.verdict
        assert report.verdict.endswith(".")
        assert ("use that plan instead" in report.verdict) == worse

    def test_every_packed_product_was_checked(self, kind: str, shelf: Shelf) -> None:
        plan, report = shelf.plan(kind), shelf.report(kind)
        found = inspect_model(plan.model.id, home=shelf.home)
        packed = [
            path
            for unit in found.units
            if plan.assignment[unit.name] != unit.native
            for path in (*(matrix.module for matrix in unit.matrices), *unit.shared_with)
        ]
        layers = 2 if kind == "mixtral" else 0  # whose experts are computed together, in two products each
        together = [check.unit for check in report.kernel_checks if check.unit.endswith(", all experts")]
        assert len(together) == 2 * layers
        assert sorted(check.unit for check in report.kernel_checks if check.unit not in together) == sorted(packed)
        assert all(check.passed and 0 <= check.max_difference <= check.tolerance for check in report.kernel_checks)

    def test_every_unit_has_its_weight_error(self, kind: str, shelf: Shelf) -> None:
        plan, report = shelf.plan(kind), shelf.report(kind)
        found = inspect_model(plan.model.id, home=shelf.home)
        assert list(report.unit_errors) == [unit.name for unit in found.units]
        for unit in found.units:
            error = report.unit_errors[unit.name]
            assert (error == 0) == (plan.assignment[unit.name] == unit.native)
            # Eight bits leave one part in 10^5 of the energy, three bits a few hundredths.
            assert error < 0.2

    def test_the_document_is_json_and_goes_into_the_plan(self, kind: str, shelf: Shelf) -> None:
        document = json.loads(json.dumps(shelf.report(kind).to_json()))
        plan = shelf.plan(kind).model_copy(update={"evidence": document})
        assert Plan.from_json(plan.to_json()) == plan


def verification_part(plan: Plan, shelf: Shelf) -> Part:
    calibration = prepare_plan(plan, shelf.home).calibration
    assert calibration is not None
    return calibration.verify


@torch.no_grad()
def test_loss_and_perplexity_by_hand(shelf: Shelf) -> None:
    """From the folder that was written: KL from the untouched model's distributions, token by token."""
    plan, report = shelf.plan("llama"), shelf.report("llama")
    untouched: Any = prepare_plan(plan, shelf.home).loaded.network.module
    module: Any = load_executed(shelf.executed("llama"))
    divergences, likelihoods, before = [], [], []
    for batch in verification_part(plan, shelf).batches:
        for ids in batch["input_ids"]:
            p, q = (made(input_ids=ids[None]).logits[0].double().log_softmax(-1) for made in (untouched, module))
            divergences.append(float((p.exp() * (p - q)).sum(-1).mean()))
            likelihoods.append(float(q[:-1].gather(1, ids[1:, None]).mean()))
            before.append(float(p[:-1].gather(1, ids[1:, None]).mean()))
    # float32 against float64 in logits of a few units.
    assert report.loss["measured"] == pytest.approx(np.mean(divergences), rel=1e-4)
    assert report.loss["measured_stderr"] == pytest.approx(np.std(divergences, ddof=1) / len(divergences) ** 0.5, rel=1e-3)
    assert report.task["name"] == "perplexity"
    assert report.task["plan"] == pytest.approx(exp(-np.mean(likelihoods)), rel=1e-5)
    assert report.task["untouched"] == pytest.approx(exp(-np.mean(before)), rel=1e-5)


@torch.no_grad()
def test_accuracy_by_hand(shelf: Shelf) -> None:
    """Images in folders are classes, so the task is accuracy."""
    plan, report = shelf.plan("resnet"), shelf.report("resnet")
    module: Any = load_executed(shelf.executed("resnet"))
    part = verification_part(plan, shelf)
    assert part.labels is not None
    right = [module(**batch).logits.argmax(-1) == labels for batch, labels in zip(part.batches, part.labels, strict=True)]
    assert report.task["name"] == "accuracy"
    assert report.task["plan"] == pytest.approx(float(torch.cat(right).float().mean()), rel=1e-6)


def test_the_task_of_the_other_kinds(shelf: Shelf) -> None:
    for kind in ("bert", "dinov2"):
        assert shelf.report(kind).task["name"] == "cosine"
        assert shelf.report(kind).task["untouched"] == pytest.approx(1, abs=1e-6)
        # The task's figure and the loss are two readings of one angle.
        assert 1 - shelf.report(kind).task["plan"] == pytest.approx(shelf.report(kind).loss["measured"], rel=1e-2)


class TestRivals:
    """The best single format that fits, and two neighbouring formats filled in layer order."""

    @pytest.mark.parametrize(("budget", "target"), [("30%", "native"), ("45%", "native"), ("60%", "vllm")])
    def test_they_are_what_their_names_say(self, budget: str, target: str, shelf: Shelf) -> None:
        plan = shelf.plan("llama", budget, target)
        found = inspect_model(plan.model.id, home=shelf.home)
        rivals = verifying._rival_assignments(plan)
        (single, everywhere), (mixed, filled) = rivals.items()
        free = [
            units[0]
            for units, row in zip(plan.certificate.items, plan.certificate.loss, strict=True)
            if sum(x is not None for x in row) > 1
        ]
        (fmt,) = {everywhere[name] for name in free}
        assert single == f"{fmt} everywhere"
        high, low = mixed.removesuffix(", in layer order").split(" then ")
        pattern = [filled[name] for name in free]
        assert set(pattern) == {high, low}
        assert pattern[0] == high
        assert low == fmt
        for assignment in rivals.values():
            assert stored(found, assignment) <= plan.budget.limit_bytes
        assert stored(found, everywhere) < stored(found, filled)

    def test_pinned_units_keep_their_format_in_rivals_too(self, shelf: Shelf) -> None:
        request = replace(shelf.request("llama", "45%"), pins=(("model.embed_tokens", "int8-g64-asym"),))
        report = known_profile(request.measured, shelf.home)
        plan = plan_from_profile(inspect_model(request.profile.model, home=shelf.home), report, request)
        rivals = verifying._rival_assignments(plan)
        assert len(rivals) == 2
        assert {assignment["model.embed_tokens"] for assignment in rivals.values()} == {"int8-g64-asym"}
        assert not any("int8" in name.split(" everywhere")[0] for name in rivals if "everywhere" in name)

    def test_the_plan_itself_is_not_its_own_rival(self, shelf: Shelf) -> None:
        request = replace(shelf.request("llama", "45%"), solver="uniform")
        report = known_profile(request.measured, shelf.home)
        plan = plan_from_profile(inspect_model(request.profile.model, home=shelf.home), report, request)
        rivals = verifying._rival_assignments(plan)
        assert len(rivals) == 1
        assert plan.assignment not in rivals.values()

    def test_an_untouched_plan_has_none(self, shelf: Shelf) -> None:
        plan = shelf.plan("llama", "100%")
        report = verify(plan, home=shelf.home, data=str(shelf.text))
        assert report.passed
        assert (report.rivals, report.paired, report.kernel_checks) == ((), None, ())
        assert report.loss["measured"] == 0
        assert report.task["plan"] == report.task["untouched"]
        assert report.task["rival"] is None
        assert report.verdict == "Bytes and products are as promised; no other uniform plan fits the budget."


class TestBrokenPromises:
    @pytest.fixture
    def plan(self, shelf: Shelf) -> Plan:
        return shelf.plan("residual")

    def check(self, plan: Plan, shelf: Shelf, verdict: str) -> ExecutionReport:
        report = verify(plan, home=shelf.home)
        assert not report.promise_kept
        assert not report.passed
        assert verdict in report.verdict
        assert report.verdict.startswith("The promise is broken: ")
        return report

    @pytest.mark.parametrize("more", [1, -4])
    def test_a_byte_too_many_or_a_few_missing(self, more: int, plan: Plan, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        true_tensors = executed.stored_tensors

        def tensors(*arguments: Any) -> dict[str, Tensor]:
            made = true_tensors(*arguments)
            name = next(iter(made))
            return made | ({"one_more": torch.zeros(1, dtype=torch.uint8)} if more > 0 else {name: made[name].view(-1)[1:]})

        monkeypatch.setattr(executed, "stored_tensors", tensors)
        total = plan.predicted.bytes.total
        report = self.check(plan, shelf, f"{total + more} bytes are stored where {total} were promised")
        assert report.bytes["measured"] == report.bytes["predicted"] + more

    def test_a_plan_above_its_own_budget(self, plan: Plan, shelf: Shelf) -> None:
        total = plan.predicted.bytes.total
        over = altered(plan, lambda document: document["budget"].update(limit_bytes=total - 1))
        self.check(over, shelf, f"{total} bytes are stored, more than the budget of {total - 1}")

    def test_a_promise_of_fewer_bytes(self, plan: Plan, shelf: Shelf) -> None:
        total = plan.predicted.bytes.total
        less = altered(plan, lambda document: document["predicted"]["bytes"].update(total=total - 1))
        self.check(less, shelf, f"{total} bytes are stored where {total - 1} were promised")

    @pytest.mark.parametrize(
        ("kind", "kernel", "wrong"),
        [
            ("llama", "matmul", "lm_head"),
            ("llama", "gather_rows", "embed_tokens"),
            ("residual", "dequantized", "conv"),
            ("mixtral", "moe_matmul", "all experts"),
        ],
    )
    def test_a_kernel_that_is_slightly_wrong(
        self, kind: str, kernel: str, wrong: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One part in ten thousand, a hundred times what float32 sums may differ by."""
        where = kernel_checks if kernel == "moe_matmul" else linear
        right = getattr(where, kernel)
        monkeypatch.setattr(where, kernel, lambda *arguments: right(*arguments) * 1.0001)
        report = self.check(shelf.plan(kind), shelf, "a product differs from the reference")
        failed = [check for check in report.kernel_checks if not check.passed]
        assert any(wrong in check.unit for check in failed)
        assert all(check.max_difference > check.tolerance for check in failed)
        assert report.bytes["measured"] == report.bytes["predicted"]


def test_a_plan_that_is_worse_than_its_rival_is_not_passed(shelf: Shelf) -> None:
    """Its profile says of each unit what is true of another, so it starves those that mind the most."""
    request = shelf.request("llama", "30%")
    profile = known_profile(request.measured, shelf.home)
    assert profile is not None
    order = np.argsort(
        profile.loss[:, 0] / [unit.parameters for unit in inspect_model(request.profile.model, home=shelf.home).units]
    )
    loss = np.empty_like(profile.loss)
    loss[order] = profile.loss[order[::-1]]
    found = inspect_model(request.profile.model, home=shelf.home)
    plan = plan_from_profile(found, replace(profile, loss=loss), request)
    report = verify(plan, home=shelf.home)
    assert report.promise_kept
    assert not report.passed
    assert report.paired is not None
    assert report.paired["difference"] > 2 * report.paired["stderr"]
    better = report.rivals[0]
    assert better["loss"] < report.loss["measured"]
    assert better["name"] in report.verdict
    assert "use that plan instead" in report.verdict


def judged(difference: float, stderr: float, shelf: Shelf, kept: bool = True) -> tuple[bool, str]:
    plan = shelf.plan("llama")
    measured: Any = {"plan": type("M", (), {"loss": 1.0 + difference}), "int4 everywhere": type("M", (), {"loss": 1.0})}
    total = plan.predicted.bytes.total
    return verifying._judge(plan, total, kept, measured, ["int4 everywhere"], {"difference": difference, "stderr": stderr})


@pytest.mark.parametrize(
    ("difference", "passed", "words"),
    [
        (0.21, False, "int4 everywhere measures better by 0.21: use that plan instead"),
        (0.19, True, "cannot be told apart"),
        (-0.19, True, "cannot be told apart"),
        (-0.21, True, "21% below that of int4 everywhere"),
    ],
)
def test_two_paired_standard_errors_decide(difference: float, passed: bool, words: str, shelf: Shelf) -> None:
    judgement, verdict = judged(difference, 0.1, shelf)
    assert judgement == passed
    assert words in verdict
    assert not judged(difference, 0.1, shelf, kept=False)[0]


class TestData:
    def test_other_data_may_be_given(self, shelf: Shelf, tmp_path: Path) -> None:
        other = tmp_path / "other.txt"
        other.write_text(read_text(None)[24_000:40_000])
        plan = shelf.plan("llama")
        report = verify(plan, data=str(other), home=shelf.home)
        assert report.data_fingerprint != shelf.report("llama").data_fingerprint
        assert report.passed

    def test_data_that_was_calibrated_on_is_refused(self, shelf: Shelf, tmp_path: Path) -> None:
        """The same text and a little more: other windows are drawn from it, some of which were calibrated on."""
        text, more = tmp_path / "text.txt", tmp_path / "more.txt"
        text.write_text(read_text(None)[:2000])  # all of its windows are used
        more.write_text(read_text(None)[:2400])
        model = str(shelf.model("llama"))
        plan = allocate(model, "40%", formats=["int4-g64"], calibration=str(text), tokens=256, home=shelf.home)
        with pytest.raises(
            UsageError, match="the verification data overlaps the calibration data; give text or images of another"
        ):
            verify(plan, data=str(more), home=shelf.home)
        assert verify(plan, home=shelf.home).promise_kept

    def test_data_that_does_not_exist(self, shelf: Shelf) -> None:
        with pytest.raises(UsageError, match="verification data /no/such/file does not exist; give a text file"):
            verify(shelf.plan("llama"), data="/no/such/file", home=shelf.home)

    def test_a_plan_measured_without_data_is_verified_on_the_text_that_is_shipped(self, shelf: Shelf) -> None:
        model = str(shelf.model("bert"))
        plan = allocate(
            model, "40%", metric="weight_error", rounding="nearest", formats=["int4-g64"], tokens=256, home=shelf.home
        )
        report = verify(plan, home=shelf.home)
        assert report.promise_kept
        assert report.quantity == "cosine distance per example"
        assert plan.predicted.quantity == "squared weight error"

    def test_images_are_asked_for_where_none_were_given(self, shelf: Shelf) -> None:
        model = str(shelf.model("residual"))
        plan = allocate(model, "30%", metric="weight_error", rounding="nearest", formats=["int4-g64"], home=shelf.home)
        with pytest.raises(UsageError, match="takes images"):
            verify(plan, home=shelf.home)
        assert verify(plan, data=str(shelf.images), home=shelf.home).promise_kept


def test_nothing_is_left_behind_and_nothing_changed(shelf: Shelf) -> None:
    plan = shelf.plan("residual")
    text, before = plan.to_json(), {path for path in shelf.home.rglob("*") if path.is_file()}
    stages: list[tuple[str, int, int]] = []
    verify(plan, home=shelf.home, progress=lambda *told: stages.append(told))
    assert plan.to_json() == text
    made = {path for path in shelf.home.rglob("*") if path.is_file()} - before
    assert all("renderings" in path.parts for path in made)
    assert not [path for path in shelf.home.iterdir() if path.name.startswith("verify-")]
    assert stages[-1][0] == "verify"
    assert stages[-1][1] == stages[-1][2] > 0


def test_verified_twice_the_numbers_are_the_same(shelf: Shelf) -> None:
    first, again = shelf.report("residual").to_json(), verify(shelf.plan("residual"), home=shelf.home).to_json()
    assert first | {"seconds": 0} == again | {"seconds": 0}
