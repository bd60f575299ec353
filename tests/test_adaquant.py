from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.kernels.formats import FORMATS
from bitplan.kernels.packing import pack_weight, unpack_zeros
from bitplan.kernels.rounding import round_nearest
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import adaquant, output_error
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.render import Renderings, rendered_transposed
from bitplan.sensitivity.study import Study

PALETTE = ("int2-g32", "int4-g64-asym", "int8-row-asym")


def correlated(rows: int, inputs: int, seed: int) -> Tensor:
    mixing = torch.randn(inputs // 4, inputs, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, inputs // 4, generator=generator) @ mixing + torch.randn(rows, inputs, generator=generator)


def problem(fmt: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, both results of `reconstruct` for them, and rows that they were not fitted to."""
    weight = 0.1 * torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    start, best = adaquant.reconstruct(weight, round_nearest(weight, FORMATS[fmt]), correlated(256, 96, 2)[None])
    return weight, start, best, correlated(4000, 96, 3)


@pytest.mark.parametrize("fmt", PALETTE)
def test_it_beats_rounding_to_nearest_on_inputs_that_are_correlated(fmt: str) -> None:
    """On rows that it was not fitted to."""
    weight, start, best, rows = problem(fmt)
    before, after = (float((rows @ (numbers - weight).T).square().sum()) for numbers in (start, best))
    assert after < 0.92 * before


@pytest.mark.parametrize("fmt", PALETTE)
def test_it_starts_from_the_nearest_numbers_of_the_grid(fmt: str) -> None:
    weight, start, _, _ = problem(fmt)
    assert torch.equal(start, rendered_transposed(round_nearest(weight, FORMATS[fmt])).T)


@pytest.mark.parametrize("fmt", PALETTE)
def test_what_it_finds_can_be_stored(fmt: str) -> None:
    """In every group all numbers are whole multiples of one fp16 scale, within the codes' range."""
    weight, _, best, _ = problem(fmt)
    made, size = round_nearest(weight, FORMATS[fmt]), FORMATS[fmt].group_size or 96
    zeros, levels = unpack_zeros(made), 2 ** FORMATS[fmt].bits - 1
    codes, scales = torch.empty(96, 40), torch.empty(made.scales.shape)
    for group in range(len(scales)):
        zero = torch.full((40,), (levels + 1) / 2) if zeros is None else zeros[group].float()
        some = best.T[group * size : (group + 1) * size]
        near = made.scales[group].float()
        tried = near * (1 + torch.linspace(-0.05, 0.05, 4001)[:, None])  # scales move by a percent or two
        tried = tried.half().float()
        off = ((some[:, None] / tried - (some[:, None] / tried).round()).abs()).amax(dim=0)  # (tried, out)
        scales[group] = tried.gather(0, off.argmin(dim=0, keepdim=True))[0]
        codes[group * size : (group + 1) * size] = (some / scales[group]).round() + zero
    assert float(codes.min()) >= 0
    assert float(codes.max()) <= levels
    packed = pack_weight(FORMATS[fmt], (40, 96), codes.to(torch.uint8), scales, None if zeros is None else zeros.to(torch.uint8))
    assert torch.equal(rendered_transposed(packed).T, best)


def test_two_equal_inputs_answer_for_each_other() -> None:
    """Weights 0.45 and 0.35 on a grid of step 1: nearest gives (0, 0), off by 0.8; best is (1, 0), off by 0.2."""
    weight = torch.tensor([[0.45, 0.35], [-0.1, 0.6]])
    codes = torch.zeros(2, 2, dtype=torch.uint8)
    made = pack_weight(FORMATS["int4-row"], (2, 2), codes, torch.ones(1, 2), None)
    start, best = adaquant.reconstruct(weight, made, torch.tensor([[[1.0, 1.0]] * 8]))
    assert start.tolist() == [[0, 0], [0, 1]]
    assert best.tolist()[0] == pytest.approx([1, 0], abs=0.02)  # the scale moves as well
    assert best.tolist()[1] == pytest.approx([0, 1], abs=0.02)


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_it_never_ends_worse_than_it_starts(iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even at a rate that makes Adam jump about."""
    monkeypatch.setattr(adaquant, "ITERATIONS", iterations)
    monkeypatch.setattr(adaquant, "STEP_RATE", 3.0)
    x = correlated(64, 96, 4)
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(5))
    start, best = adaquant.reconstruct(weight, round_nearest(weight, FORMATS["int3-g32"]), x[None])
    before, after = (float((x @ (numbers - weight).T).square().sum()) for numbers in (start, best))
    assert after <= before
    assert torch.equal(start, best) is (after == before)


def test_outputs_taken_a_few_at_a_time_are_optimised_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, start, best, rows = problem("int4-g64-asym")
    monkeypatch.setattr(adaquant, "ENTRIES_AT_ONCE", 32 * 96)  # 32 outputs, then 8
    again = problem("int4-g64-asym")
    assert torch.equal(again[1], start)
    one, two = (float((rows @ (numbers - weight).T).square().sum()) for numbers in (best, again[2]))
    assert two == pytest.approx(one, rel=0.02)


def test_no_rows_leave_the_start() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(5))
    start, best = adaquant.reconstruct(weight, round_nearest(weight, FORMATS["int3-g32"]), torch.empty(1, 0, 8))
    assert torch.equal(start, best)


# --- As a metric.


def renderings(home: Path, network: Network) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in PALETTE])
    return made


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert", "resnet"])
def test_a_model_loses_less_than_by_rounding_to_nearest(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged by half of all rows, each counted twice, and by the other half where nothing is optimised."""
    monkeypatch.setattr(adaquant, "ROWS", 1 << 20)
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    made = renderings(tmp_path, network)
    best = adaquant.estimate(Study(network, made, part, PALETTE))
    monkeypatch.setattr(adaquant, "ITERATIONS", 0)
    start = adaquant.estimate(Study(network, made, part, PALETTE))
    assert bool((best.loss <= start.loss).all())
    assert bool((best.loss[:, :2].sum(axis=0) < 0.97 * start.loss[:, :2].sum(axis=0)).all())
    plain = output_error.estimate(Study(network, made, part, PALETTE))
    assert start.loss.sum(axis=0) == pytest.approx(plain.loss.sum(axis=0), rel=0.1)  # a sample of its rows
    for u, unit in enumerate(network.inventory.units):
        if unit.kind == "embedding":
            assert best.loss[u].tolist() == start.loss[u].tolist()


def test_all_rows_judge_where_that_many_are_asked_for(tmp_path: Path) -> None:
    """One row a batch: nothing to fit, so it is the output error."""
    torch.manual_seed(0)
    module = make_plain(nn.Sequential(nn.Linear(32, 8)))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    part = Part(tuple({"pixel_values": torch.randn(1, 32)} for _ in range(4)), frozenset("abcd"))
    study = Study(network, renderings(tmp_path, network), part, PALETTE)
    found, plain = adaquant.estimate(study), output_error.estimate(study)
    assert found.loss == pytest.approx(plain.loss, rel=1e-9)
    assert found.stderr == pytest.approx(plain.stderr, rel=1e-6)


def test_an_expert_that_no_token_reaches_loses_nothing(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 0)
    part = models.fewer(models.calibration("mixtral").estimate, 3)
    loss = adaquant.estimate(Study(network, renderings(tmp_path, network), part, PALETTE)).loss
    unreached = [unit.name for u, unit in enumerate(network.inventory.units) if not np.any(loss[u])]
    assert unreached == [f"model.layers.{layer}.mlp.experts.0" for layer in range(2)]


def test_grouped_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
    module = make_plain(nn.Sequential(conv, nn.Flatten()))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    images = nn.functional.interpolate(torch.randn(6, 8, 4, 4), (12, 12), mode="bilinear")  # neighbours go together
    part = Part(tuple({"pixel_values": pair} for pair in images.view(3, 2, 8, 12, 12)), frozenset("abc"))
    study = Study(network, renderings(tmp_path, network), part, PALETTE[:1])
    found, plain = adaquant.estimate(study).loss[0, 0], output_error.estimate(study).loss[0, 0]
    assert 0 < found < 0.97 * plain
