"""What every metric promises, held against each entry of METRICS on models of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import models
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity import METRICS
from bitplan.sensitivity.estimate import Estimate
from bitplan.sensitivity.flow import Flow
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.progress import Progress, Steps, compute_always, silent
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.units import admits

Floats = npt.NDArray[np.float64]
KINDS = ["llama", "mixtral", "dinov2", "residual"]  # tokens, tokens through experts, pooled vectors, classes
FAMILIES = ("curvature", "reconstruction", "salience", "relevance", "information", "routing", "measured", "prior")
PALETTE = ("int2-g32", "int4-g64-asym", "int8-row-asym", "bf16", "fp32")


@dataclass(frozen=True, eq=False)
class Run:
    """An estimate, what it told of its progress, and whether the model was afterwards as it was before."""

    estimate: Estimate
    told: list[tuple[str, int, int]]
    model_as_before: bool


def measured(metric: str) -> bool:
    """Whether it estimates the divergence of the output itself, in its own units."""
    return metric in ("kl_fisher", "divergence", "divergence_blocks", "divergence_bisection")


class Case:
    """A model with its renderings and the data to estimate on; `run` estimates once for all tests."""

    def __init__(self, kind: str, home: Path) -> None:
        calibration = models.calibration(kind)
        whole = models.network(kind)
        self.network = replace(
            whole, inventory=replace(whole.inventory, units=whole.inventory.units[::3])
        )  # every third: sooner done
        self.renderings = Renderings(home, self.network, "gptq", calibration.render)
        self.renderings.make([(unit, fmt) for unit in self.network.inventory.units for fmt in PALETTE])
        self.part = models.fewer(calibration.estimate, 3)
        self.runs: dict[str, Run] = {}

    def estimate(self, metric: str, steps: Steps = compute_always, progress: Progress = silent) -> Estimate:
        data = self.part if METRICS[metric].needs_data else None
        return METRICS[metric].estimate(Study(self.network, self.renderings, data, PALETTE, 7, steps, progress))

    def run(self, metric: str) -> Run:
        if METRICS[metric].only and self.network.inventory.family not in METRICS[metric].only:
            pytest.skip(f"{metric} is not for {self.network.inventory.family} models")
        if metric not in self.runs:
            told: list[tuple[str, int, int]] = []
            before = self.state()
            found = self.estimate(metric, progress=lambda *step: told.append(step))
            self.runs[metric] = Run(found, told, self.state() == before)
        return self.runs[metric]

    def state(self) -> list[object]:
        """All that an estimate could leave behind."""
        module = self.network.module
        left: list[object] = [take_inventory(module, model_id="", family="", outputs=self.network.inventory.outputs).fingerprint]
        for name, child in module.named_modules():
            left.append((name, type(child), child.training, len(child._forward_hooks), len(child._forward_pre_hooks)))
        left += [(name, id(p), p.requires_grad, p.grad is None) for name, p in module.named_parameters()]
        return [*left, torch.is_grad_enabled()]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("home"))


metrics = pytest.mark.parametrize("metric", METRICS)


@metrics
def test_the_table_and_what_it_means(metric: str, case: Case) -> None:
    units = case.network.inventory.units
    found = case.run(metric).estimate
    assert found.loss.shape == (len(units), len(PALETTE))
    assert found.loss.dtype == np.float64
    admitted = np.array([[admits(unit, FORMATS[fmt]) for fmt in PALETTE] for unit in units])
    tables = [found.loss] if found.stderr is None else [found.loss, found.stderr]
    for table in tables:
        assert np.array_equal(np.isnan(table), ~admitted)
        assert np.isfinite(table[admitted]).all()
        assert (table[admitted] >= 0).all()
    assert (found.stderr is not None) is METRICS[metric].needs_data  # a sample has a sampling error, all the weights have none
    assert found.batches == (len(case.part.batches) if METRICS[metric].needs_data else 0)
    assert found.quantity
    if measured(metric):
        assert found.quantity == case.network.quantity


@metrics
def test_its_own_format_costs_nothing_and_others_cost_more_the_fewer_bits(metric: str, case: Case) -> None:
    units, loss = case.network.inventory.units, case.run(metric).estimate.loss
    for u, unit in enumerate(units):
        assert loss[u, PALETTE.index(unit.native)] == 0
    if metric == "cross_entropy":  # to an untrained network coarse rounding does good
        return
    totals = loss[:, :3].sum(axis=0)
    assert totals[0] > totals[1] > totals[2] > 0
    if measured(metric):
        assert totals[0] > 4 * totals[1] > 16 * totals[2]


@metrics
def test_the_model_is_left_as_it_was(metric: str, case: Case) -> None:
    assert case.run(metric).model_as_before


@metrics
def test_it_can_be_stopped_at_any_time_and_leaves_the_model_as_it_was(metric: str, case: Case) -> None:
    case.run(metric)
    before, told = case.state(), 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal told
        told += 1
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        case.estimate(metric, progress=stop)
    assert told == 3
    assert case.state() == before


@metrics
def test_progress_ends_where_it_said_it_would(metric: str, case: Case) -> None:
    told = case.run(metric).told
    total = told[0][2]
    assert told == [("estimate", done, total) for done in range(total + 1)]


def same(one: Estimate, two: Estimate) -> None:
    assert one.loss.tobytes() == two.loss.tobytes()
    assert (one.stderr is None) is (two.stderr is None)
    assert one.stderr is None or two.stderr is None or one.stderr.tobytes() == two.stderr.tobytes()


@metrics
def test_the_same_again_is_the_same_and_finished_steps_are_not_done_again(metric: str, case: Case) -> None:
    """Interrupted after two steps and taken up again, it does the others only and gives the same table. None of its steps is
    one of the first estimate's: what the seed does not determine shows here."""
    whole = case.run(metric).estimate
    kept: dict[str, Floats] = {}
    computed: list[str] = []

    def steps(name: str, compute: Callable[[], Floats]) -> Floats:
        if name not in kept:
            if len(computed) == 2:
                computed.append("stop")
                raise InterruptedError
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    if not METRICS[metric].needs_data:  # one pass over the weights: nothing worth keeping
        same(case.estimate(metric, steps), whole)
        assert computed == []
        return
    with pytest.raises(InterruptedError):
        case.estimate(metric, steps)
    again = case.estimate(metric, steps)
    assert len(computed) == len(set(computed))  # no step twice
    assert len(kept) > 2
    same(again, whole)


@metrics
def test_data_is_asked_for_where_it_is_needed(metric: str, case: Case) -> None:
    found = case.run(metric).estimate
    if not METRICS[metric].needs_data:
        assert found.batches == 0
        return
    with pytest.raises(ValueError, match=rf"{metric} needs calibration data; .*weight_error"):
        METRICS[metric].estimate(Study(case.network, case.renderings, None, PALETTE))
    with pytest.raises(ValueError, match="needs calibration data"):  # asked without the check, too
        METRICS[metric].module.estimate(Study(case.network, case.renderings, None, PALETTE))


@metrics
def test_a_model_that_it_is_not_for_is_named(metric: str, case: Case) -> None:
    if not METRICS[metric].only:
        pytest.skip(f"{metric} is for every model")
    other = replace(case.network, inventory=replace(case.network.inventory, family="quantum"))
    with pytest.raises(ValueError, match=rf"{metric} is for .* and this is a quantum one; use kl_fisher"):
        METRICS[metric].estimate(Study(other, case.renderings, case.part, PALETTE))


@metrics
def test_what_streams_has_a_flow_and_what_has_a_flow_streams(metric: str) -> None:
    assert METRICS[metric].streams is isinstance(getattr(METRICS[metric].module, "FLOW", None), Flow)


def test_every_metric_says_what_it_is() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.family in FAMILIES
        assert 20 < len(metric.summary) < 110
        assert "\n" not in metric.summary
