"""Calibrating until the plan holds still: on tables made by hand, on a model, and from the command line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fakes
import models
from bitplan.allocator import (
    Infeasible,
    Interrupted,
    ProfileRequest,
    known_profile,
    profile_model,
)
from bitplan.allocator.home import StoredSteps
from bitplan.allocator.models import load
from bitplan.allocator.prepared import prepare
from bitplan.allocator.source import resolve
from bitplan.allocator.stable import estimate_until_stable, tokens_in
from bitplan.api.cli import main
from bitplan.sensitivity import METRICS
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.estimate import Estimate, ratio_estimate
from bitplan.sensitivity.progress import Progress, Steps, compute_always, silent
from bitplan.sensitivity.report import Floats
from bitplan.sensitivity.study import Study
from shelf import Shelf

FORMATS = ("int2-g64", "int4-g64", "int8-g64", "bf16")
REQUEST = ProfileRequest("tiny", formats=FORMATS[:3], until_stable="30%")
INVENTORY = fakes.inventory()
NETWORK: Any = SimpleNamespace(inventory=INVENTORY)
RENDERINGS: Any = None
TOKENS = 10  # of each batch
BASE = np.array([[u + 1, (u + 1) / 16, (u + 1) / 4096, 0] for u in range(len(INVENTORY.units))])


class Told:
    """A metric whose batches have tables that are told it: `tables[i]` is that of the batch of number i."""

    streams, needs_data = True, True

    def __init__(self, tables: Sequence[Floats]) -> None:
        self.tables = tables
        self.computed: Counter[str] = Counter()
        self.seen: list[tuple[int, int | None]] = []

    def estimate(self, study: Study) -> Estimate:
        part = study.data
        self.seen.append((len(part.batches), None if part.labels is None else len(part.labels)))

        def compute(index: int) -> Floats:
            self.computed[f"batch {index}"] += 1
            return TOKENS * self.tables[index]

        sums = [study.steps(f"batch {i}", lambda i=i: compute(i)) for i in range(len(part.batches))]  # type: ignore[misc]
        return ratio_estimate(sums, [TOKENS] * len(sums), "nats per token")

    def plain(self, batches: int) -> Estimate:
        """What the metric finds on the first batches, asked for them alone."""
        return Told(self.tables).estimate(Study(NETWORK, RENDERINGS, part_of(batches), FORMATS))


def part_of(batches: int, labels: bool = False) -> Part:
    data = tuple({"input_ids": torch.full((1, TOKENS), i)} for i in range(batches))
    return Part(data, frozenset(), tuple(torch.tensor([0]) for _ in data) if labels else None)


def alike(count: int) -> list[Floats]:
    """Tables of batches drawn from one source."""
    generator = np.random.default_rng(0)
    return [BASE * generator.uniform(0.98, 1.02, BASE.shape) for _ in range(count)]


def restless(count: int) -> list[Floats]:
    """Each batch finds another unit to be what matters most, and more than all that was before."""
    tables = [BASE.copy() for _ in range(count)]
    for index, table in enumerate(tables):
        table[index] *= 10.0 ** (3 + index)
    return tables


Measure = Callable[..., tuple[Estimate, Part]]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """`estimate_until_stable` by a metric that is told its tables."""

    def measure(
        metric: Told, part: Part, steps: Steps = compute_always, progress: Progress = silent, request: ProfileRequest = REQUEST
    ) -> tuple[Estimate, Part]:
        monkeypatch.setitem(METRICS, "kl_fisher", metric)
        return estimate_until_stable(request, Study(NETWORK, RENDERINGS, part, FORMATS, steps=steps, progress=progress))

    return measure


def same(one: Estimate, other: Estimate) -> None:
    np.testing.assert_array_equal(one.loss, other.loss)
    assert one.stderr is not None
    assert other.stderr is not None
    np.testing.assert_array_equal(one.stderr, other.stderr)
    assert (one.batches, one.quantity) == (other.batches, other.quantity)


class TestWhenToStop:
    def test_it_stops_when_nothing_changes_any_more(self, measure: Measure) -> None:
        """After 2, 3 and 4 batches: the plan was the same twice running."""
        metric = Told(alike(12))
        found, used = measure(metric, part_of(12, labels=True))
        assert metric.seen == [(2, 2), (3, 3), (4, 4)]
        assert len(used.batches) == 4
        assert found.notes == ("calibration stopped after 40 of 120 tokens: the plan for 30% had stopped changing",)
        same(found, metric.plain(4))

    def test_it_uses_all_there_is_when_it_must(self, measure: Measure) -> None:
        metric = Told(restless(12))
        found, used = measure(metric, part_of(12))
        assert [batches for batches, _ in metric.seen] == [2, 3, 4, 6, 9, 12]
        assert len(used.batches) == 12
        assert found.notes == ("the plan for 30% was not seen to stop changing in all 120 tokens; give more with --tokens",)
        same(found, metric.plain(12))

    def test_one_change_starts_the_count_anew(self, measure: Measure) -> None:
        """Still from 2 to 3, moved at 4, still at 6 and 9."""
        tables = alike(20)
        tables[3][0] *= 10**6
        metric = Told(tables)
        found, _ = measure(metric, part_of(20))
        assert [batches for batches, _ in metric.seen] == [2, 3, 4, 6, 9]
        assert found.batches == 9

    def test_a_plan_that_is_as_good_is_no_change(self, measure: Measure) -> None:
        """Units that cost the same change places by chance; the loss is what counts."""
        generator = np.random.default_rng(1)
        level = np.array([1, 1 / 16, 1 / 4096, 0]) * np.array([[unit.parameters] for unit in INVENTORY.units])
        tables = [level * generator.uniform(0.999, 1.001, level.shape) for _ in range(12)]
        found, _ = measure(Told(tables), part_of(12))
        assert found.batches == 4

    def test_it_may_stop_with_the_last_batch(self, measure: Measure) -> None:
        found, _ = measure(Told(alike(4)), part_of(4))
        assert found.notes == ("the plan for 30% had stopped changing when all 40 tokens were used",)

    @pytest.mark.parametrize("batches", [1, 2, 3])
    def test_too_few_batches_say_nothing_of_change(self, batches: int, measure: Measure) -> None:
        metric = Told(alike(3))
        found, used = measure(metric, part_of(batches))
        assert len(used.batches) == batches
        assert "was not seen to stop changing" in found.notes[-1]
        np.testing.assert_array_equal(found.loss, metric.plain(batches).loss)

    def test_a_wider_tolerance_stops_sooner(self, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bitplan.allocator.stable.TOLERANCE", 1e12)
        assert measure(Told(restless(12)), part_of(12))[0].batches == 4
        monkeypatch.setattr("bitplan.allocator.stable.TOLERANCE", -1.0)  # which nothing but no loss at all meets
        assert measure(Told(alike(12)), part_of(12))[0].batches == 12

    def test_the_budget_decides(self, measure: Measure) -> None:
        """Where everything fits, there is nothing to choose; a table that never settles settles that."""
        request = replace(REQUEST, until_stable="100%")
        found, _ = measure(Told(restless(12)), part_of(12), request=request)
        assert found.batches == 4
        assert "the plan for 100% had stopped" in found.notes[0]

    def test_a_budget_that_nothing_meets(self, measure: Measure) -> None:
        with pytest.raises(Infeasible, match="budget 1% is"):
            measure(Told(alike(4)), part_of(4), request=replace(REQUEST, until_stable="1%"))


class TestSteps:
    @pytest.mark.parametrize("tables", [alike(12), restless(12)], ids=["stops", "goes on"])
    def test_a_batch_is_measured_once(self, tables: list[Floats], measure: Measure) -> None:
        metric = Told(tables)
        found, _ = measure(metric, part_of(12))
        assert metric.computed == {f"batch {i}": 1 for i in range(found.batches)}

    @pytest.mark.parametrize("at", range(1, 6))
    def test_interrupted_it_goes_on_where_it_was(self, at: int, measure: Measure, tmp_path: Path) -> None:
        metric, told = Told(restless(12)), list[tuple[str, int, int]]()

        def progress(stage: str, done: int, total: int) -> None:
            told.append((stage, done, total))
            if len(told) == at + 1:
                raise Interrupted

        with pytest.raises(Interrupted):
            measure(metric, part_of(12), StoredSteps(tmp_path / "steps"), progress)
        assert sum(metric.computed.values()) == told[at - 1][1]
        found, _ = measure(metric, part_of(12), StoredSteps(tmp_path / "steps"), progress)
        same(found, metric.plain(12))
        assert set(metric.computed.values()) == {1}

    def test_progress_counts_batches(self, measure: Measure) -> None:
        told: list[tuple[str, int, int]] = []
        measure(Told(alike(12)), part_of(12), progress=lambda *what: told.append(what))
        assert told == [("estimate until stable", done, 12) for done in (2, 3, 4, 12)]


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ({"input_ids": torch.zeros(2, 5)}, 10),
        ({"input_ids": torch.zeros(2, 5), "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}, 8),
        ({"pixel_values": torch.zeros(3, 3, 8, 8)}, 3),
    ],
    ids=["tokens", "masked tokens", "images"],
)
def test_what_is_counted(batch: dict[str, torch.Tensor], count: int) -> None:
    assert tokens_in(Part((batch, batch), frozenset())) == 2 * count


def test_images_are_called_so(measure: Measure) -> None:
    part = Part(tuple({"pixel_values": torch.zeros(3, 3, 8, 8)} for _ in range(6)), frozenset())
    assert measure(Told(alike(6)), part)[0].notes[0].startswith("calibration stopped after 12 of 18 images: ")


@pytest.fixture(scope="module")
def request_(shelf: Shelf) -> ProfileRequest:
    """Eight batches of one window each."""
    return ProfileRequest(
        str(shelf.model("llama")),
        formats=("int2-g64-asym", "int4-g64", "int8-g64"),
        calibration=str(shelf.text),
        tokens=8 * models.LONGEST,
        rounding="nearest",
        until_stable="30%",
    )


class TestProfiles:
    def test_a_profile_says_how_much_it_used(self, request_: ProfileRequest, tmp_path: Path) -> None:
        report = profile_model(request_, home=tmp_path)
        used = report.batches * models.LONGEST
        assert report.settings["until_stable"] == "30%"
        assert report.settings["tokens_used"] == used
        assert report.settings["tokens"] == request_.tokens
        said = f"calibration stopped after {used:,} of 512 tokens" if used < 512 else "all 512 tokens"
        assert sum(said in note for note in report.notes) == 1
        assert not list((tmp_path / "partial").iterdir())

        prepared = prepare(request_, load(resolve(request_.model), tmp_path), tmp_path)
        assert prepared.calibration is not None
        part = models.fewer(prepared.calibration.estimate, report.batches)
        plain = METRICS["kl_fisher"].estimate(Study(prepared.loaded.network, prepared.renderings, part, report.formats))
        np.testing.assert_array_equal(report.loss, plain.loss)
        assert report.stderr is not None
        np.testing.assert_array_equal(report.stderr, plain.stderr)

    def test_it_is_another_profile_than_that_of_all_tokens(
        self, request_: ProfileRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bitplan.allocator.stable.TOLERANCE", 1e9)  # so that it does stop
        report = profile_model(request_, home=tmp_path)
        assert report.batches == 4
        assert known_profile(request_, tmp_path) is not None
        for other in (None, "40%"):
            assert known_profile(replace(request_, until_stable=other), tmp_path) is None
        whole = profile_model(replace(request_, until_stable=None), home=tmp_path)
        assert whole.id != report.id
        assert whole.batches == 8
        assert "until_stable" not in whole.settings

    def test_experts_are_reached_by_the_tokens_that_were_used(
        self, request_: ProfileRequest, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not by those that were left over."""
        from bitplan.allocator import profile_work as profile

        counted: list[int] = []
        tokens_by_unit = profile._tokens_by_unit

        def count(network: Any, part: Part) -> Floats:
            counted.append(len(part.batches))
            return tokens_by_unit(network, part)

        monkeypatch.setattr(profile, "_tokens_by_unit", count)
        monkeypatch.setattr("bitplan.allocator.stable.TOLERANCE", 1e9)
        profile_model(replace(request_, model=str(shelf.model("mixtral"))), home=tmp_path)
        assert counted == [4]

    def test_a_budget_that_nothing_meets_is_refused_before_anything_is_measured(
        self, request_: ProfileRequest, tmp_path: Path
    ) -> None:
        with pytest.raises(Infeasible, match="budget 1% is"):
            profile_model(replace(request_, until_stable="1%"), home=tmp_path)
        assert not (tmp_path / "renderings").exists()


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


class TestCommandLine:
    @pytest.fixture
    def run(self, request_: ProfileRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
        assert request_.formats is not None
        options = ["--formats", ",".join(request_.formats), "--calibration", str(request_.calibration), "--tokens", "512"]

        def run(command: str, *arguments: str) -> Done:
            capsys.readouterr()
            status = main([command, request_.model, *options, *arguments])
            said = capsys.readouterr()
            return Done(status, said.out, said.err)

        return run

    def test_profile_and_plan(self, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
        """A plan by its budget finds what was measured for that budget."""
        monkeypatch.setattr("bitplan.allocator.stable.TOLERANCE", 1e9)
        done = run("profile", "--rounding", "nearest", "--until-stable", "30%", "--json")
        assert done.status == 0, done.err
        report = json.loads(done.out)
        assert report["settings"]["tokens_used"] == 4 * models.LONGEST
        assert "calibration stopped after 256 of 512 tokens" in report["notes"][0]
        done = run("plan", "--budget", "30%", "--rounding", "nearest", "--until-stable", "--json")
        assert done.status == 0, done.err
        plan = json.loads(done.out)
        assert plan["provenance"]["profile_id"] == report["id"]
        assert report["notes"][0] in json.dumps(plan)
        assert "estimate" not in done.err

    def test_a_streamed_plan_is_the_plan(self, run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plans: list[Any] = []
        for more in ([], ["--stream"]):
            monkeypatch.setenv("BITPLAN_HOME", str(tmp_path / str(len(plans))))
            done = run("plan", "--budget", "30%", "--rounding", "nearest", "--json", *more)
            assert done.status == 0, done.err
            plans.append(json.loads(done.out))
        assert plans[0]["id"] == plans[1]["id"]
        assert plans[0]["assignment"] == plans[1]["assignment"]

    @pytest.mark.parametrize(
        ("arguments", "status", "sentence"),
        [
            (
                ["profile", "--until-stable", "30%", "--stream"],
                2,
                "batch by batch and --stream block by block; leave one of them",
            ),
            (["plan", "--budget", "30%", "--until-stable", "--stream"], 2, "leave one of them out"),
            (["profile", "--until-stable", "lots"], 2, "budget 'lots' cannot be read; write bytes"),
            (["profile", "--until-stable", "30%", "--metric", "divergence"], 2, "'divergence' does not add up batch by batch"),
            (
                ["profile", "--metric", "divergence", "--stream"],
                2,
                "'divergence' needs the whole model in memory; leave --stream",
            ),
            (["profile", "--until-stable", "1%"], 3, "budget 1% is"),
            (["plan", "--budget", "1%", "--until-stable"], 3, "budget 1% is"),
        ],
    )
    def test_a_mistake_costs_one_sentence(
        self, run: Callable[..., Done], arguments: list[str], status: int, sentence: str
    ) -> None:
        done = run(*arguments)
        assert (done.status, done.out) == (status, "")
        said = [line for line in done.err.splitlines() if line.startswith("bitplan: ")]
        assert len(said) == 1
        assert sentence in said[0]
        assert "Traceback" not in done.err
