from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import divergence, hessian_trace
from bitplan.sensitivity.metrics.hessian_trace import batch_traces, hutchinson, summed_loss
from bitplan.sensitivity.network import Network, run
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.study import Study
from loops import Moved, changes, renderings

Floats = npt.NDArray[np.float64]
FORMATS = ("int3-g32-asym", "int4-g64")


def probe(matrix: Tensor, sizes: Sequence[int], probes: int, seed: int = 0) -> Floats:
    def multiply(vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        blocks: Sequence[Tensor] = torch.split(matrix @ torch.cat(list(vectors)), list(sizes))
        return blocks

    return hutchinson(multiply, [torch.Size([n]) for n in sizes], probes, torch.Generator().manual_seed(seed))


def test_probes_of_a_small_matrix() -> None:
    """H = [[2, 1], [1, 3]]: the four probes give 7, 3, 3 and 7, their mean 5 is the trace, their variance 4."""
    found = probe(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), [2], 400)[:, 0]
    assert set(found) == {3.0, 7.0}
    assert np.mean(found) == pytest.approx(5, abs=4.5 * 2 / 20)
    assert np.mean((found - 5) ** 2) == 4


def test_probes_are_unbiased_and_scatter_as_they_should() -> None:
    """Two blocks of one matrix: the mean is each block's trace; the variance has the block's own products twice and those with
    the other block once. A diagonal matrix has no variance."""
    torch.manual_seed(0)
    root = torch.randn(7, 7)
    matrix, sizes, probes = root @ root.T, [3, 4], 6_000
    found = probe(matrix, sizes, probes)
    for block, mine in enumerate((slice(0, 3), slice(3, 7))):
        own = matrix[mine, mine]
        variance = 2 * float(own.square().sum() - own.diagonal().square().sum())
        variance += float(matrix[mine].square().sum() - own.square().sum())
        assert found[:, block].mean() == pytest.approx(float(own.trace()), abs=4.5 * (variance / probes) ** 0.5)
        assert found[:, block].var() == pytest.approx(variance, rel=0.1)
    diagonal = probe(torch.diag(torch.tensor([100.0, 1.0, -3.0])), [2, 1], 5)
    assert diagonal == pytest.approx(np.tile([101.0, -3.0], (5, 1)), rel=1e-6)


def quadratic(inputs: Tensor, outputs: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Network, Part]:
    """y = W x with half the squared length of y for a loss: the Hessian of every row of W is the mean of x x^T."""
    module = make_plain(nn.Sequential(nn.Linear(inputs.shape[1], outputs, bias=False)))
    network = Network(module, take_inventory(module, model_id="m", family="vision", outputs="classes"))
    monkeypatch.setattr(hessian_trace, "summed_loss", lambda network, output, *_: output.square().sum() / 2)
    return network, Part(tuple({"pixel_values": some} for some in inputs.view(-1, 2, inputs.shape[1])), frozenset("a"))


def test_an_error_along_one_eigenvector_is_misjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """H = diag(100, 1): the errors (1, 0) and (0, 1) cost 50 and 1/2, the estimate is 25.25 for both."""
    network, part = quadratic(torch.tensor([[200.0**0.5, 0.0], [0.0, 2.0**0.5]]), 2, monkeypatch)
    for error, cost in (([1.0, 0.0], 50), ([0.0, 1.0], 0.5)):
        made: Any = Moved(network, {"0": [torch.tensor([error, [0.0, 0.0]])]})
        moved = part.batches[0]["pixel_values"] @ torch.tensor([error, [0.0, 0.0]]).T
        assert float(moved.square().sum()) / 2 / 2 == pytest.approx(cost)  # half, and the mean over two examples
        found = hessian_trace.estimate(Study(network, made, part, ("int4-row",)))
        assert found.loss[0, 0] == pytest.approx(25.25, rel=1e-5)


def test_a_linear_layer_is_its_mean_input_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tr H / n = mean over examples of |x|^2 / in, whatever the outputs."""
    torch.manual_seed(0)
    inputs = torch.diag(torch.rand(6) + 0.5)  # probes have no variance where inputs are along the axes
    network, part = quadratic(inputs, 4, monkeypatch)
    made: Any = Moved(network, {"0": [torch.full((4, 6), 0.1)]})
    found = hessian_trace.estimate(Study(network, made, part, ("int4-row",)))
    energy = float(inputs.square().sum(1).mean()) / 6
    assert found.loss[0, 0] == pytest.approx(energy / 2 * 24 * 0.1**2, rel=1e-5)


def test_a_trace_that_comes_out_negative_is_zero_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = quadratic(torch.eye(4), 3, monkeypatch)
    monkeypatch.setattr(hessian_trace, "summed_loss", lambda network, output, *_: -output.square().sum())
    made: Any = Moved(network, {"0": [torch.full((3, 4), 0.1)]})
    found = hessian_trace.estimate(Study(network, made, part, ("int4-row",)))
    assert found.loss[0, 0] == 0
    assert any("1 of 1 units came out negative" in note for note in found.notes)


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = quadratic(torch.eye(4), 3, monkeypatch)
    monkeypatch.setattr(hessian_trace, "summed_loss", lambda network, output, *_: output.sum())
    made: Any = Moved(network, {"0": [torch.full((3, 4), 0.1)]})
    assert hessian_trace.estimate(Study(network, made, part, ("int4-row",))).loss[0, 0] == 0


def tiny() -> tuple[Network, Part]:
    """158 weights: a convolution and two layers."""
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7), nn.GELU(), nn.Linear(7, 5))
    module = make_plain(nn.Sequential(*layers))
    network = Network(module, take_inventory(module, model_id="m", family="vision", outputs="classes"))
    for parameter in module.parameters():
        parameter.data *= 2
    batches = tuple({"pixel_values": torch.randn(n, 1, 6, 6)} for n in (4, 5, 3))
    likely = tuple(module(batch["pixel_values"]).argmax(-1) for batch in batches)  # else most traces are negative
    return network, Part(batches, frozenset("abc"), likely)


def hessian(network: Network, part: Part) -> tuple[Tensor, list[slice]]:
    """The whole Hessian of the mean cross-entropy, one second derivative after another, and where each unit stands in it."""
    weights = [network.module.get_parameter(f"{unit.name}.weight").requires_grad_() for unit in network.inventory.units]
    assert part.labels is not None
    outputs = torch.cat([network.module(batch["pixel_values"]) for batch in part.batches])
    loss = nn.functional.cross_entropy(outputs, torch.cat(part.labels))
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])
    found = [torch.cat([h.flatten() for h in torch.autograd.grad(one, weights, retain_graph=True)]) for one in flat]
    network.module.requires_grad_(False)
    ends = np.cumsum([0] + [weight.numel() for weight in weights])
    return torch.stack(found), [slice(a, b) for a, b in pairwise(ends)]


def test_it_is_the_trace_of_the_whole_hessian() -> None:
    """In the mean, batch by batch; and the scatter is that of the formula, other units' weights included."""
    network, part = tiny()
    matrix, places = hessian(network, part)
    assert part.labels is not None
    batch, labels = {"pixel_values": torch.cat([b["pixel_values"] for b in part.batches])}, torch.cat(part.labels)
    together = batch_traces(network, batch, labels, 600, 0) / 12
    apart = np.sum([batch_traces(network, b, y, 100, 0) for b, y in zip(part.batches, part.labels, strict=True)], axis=0) / 12
    for u, at in enumerate(places):
        own, all_of_it = matrix[at, at], matrix[at]
        trace = float(own.trace())
        variance = float(all_of_it.square().sum() + own.square().sum() - 2 * own.diagonal().square().sum())
        assert (variance / 600) ** 0.5 < 0.15 * trace  # else the test says nothing
        assert together[u].mean() == pytest.approx(trace, abs=4.5 * (variance / 600) ** 0.5)
        assert together[u].var() == pytest.approx(variance, rel=0.3)
        assert apart[u].mean() == pytest.approx(trace, abs=4.5 * apart[u].std() / 10)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "vit", "dinov2", "masked", "residual"])
def test_products_are_differences_of_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same probes by finite differences: v . (gradient at W + e v - gradient at W - e v) / 2e, in float64 as far as the
    models' own norms go. Attention, experts, ties and labels included."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 1)
    batch = part.batches[0]
    labels = torch.arange(len(batch["pixel_values"])) % 10 if kind == "vit" else None
    found = batch_traces(network, batch, labels, 2, 5)
    exact = replace(network, module=deepcopy(network.module).double())
    batch = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    weights = [[exact.module.get_parameter(f"{m.module}.weight") for m in unit.matrices] for unit in network.inventory.units]
    flat = [weight.requires_grad_() for mine in weights for weight in mine]
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)
    generator, frozen = torch.Generator().manual_seed(5), run(exact, batch).detach()
    step = 1e-4 if kind in ("llama", "mixtral") else 1e-6  # those norms are float32; a kink should not lie within a step

    def gradient() -> list[Tensor]:
        output = run(exact, batch)
        loss = summed_loss(exact, output, batch, labels, torch.Generator())
        if kind in ("dinov2", "masked", "residual"):  # the divergence from what the weights give before they move
            if kind == "dinov2":
                loss = (output - frozen).square().sum() / 2
            else:
                loss = -(frozen.softmax(-1) * output.log_softmax(-1)).sum()
        found = torch.autograd.grad(loss, flat, allow_unused=True)
        return [torch.zeros_like(weight) if g is None else g for weight, g in zip(flat, found, strict=True)]

    for k in range(2):
        vectors = [torch.randint(0, 2, weight.shape, generator=generator).double() * 2 - 1 for weight in flat]
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, v in zip(flat, vectors, strict=True):
                    weight += sign * step * v
            sides.append(gradient())
            with torch.no_grad():
                for weight, v in zip(flat, vectors, strict=True):
                    weight -= sign * step * v
        by_matrix = [float((v * (a - b)).sum()) / (2 * step) for v, a, b in zip(vectors, *sides, strict=True)]
        by_unit = [sum(by_matrix.pop(0) for _ in mine) for mine in weights]
        assert found[:, k] == pytest.approx(by_unit, rel=0.02, abs=2e-3 * np.abs(by_unit).max())


def test_without_labels_it_is_the_curvature_of_the_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error without a preferred direction costs the trace in expectation: measured divergences of random errors."""
    monkeypatch.setattr(hessian_trace, "PROBES", 60)
    network, part = models.network("vit"), models.fewer(models.calibration("vit").estimate, 1)
    network = replace(network, inventory=replace(network.inventory, units=network.inventory.units[::3]))
    generator, measured = torch.Generator().manual_seed(0), []
    sizes = {unit.name: [m.shape for m in unit.matrices] for unit in network.inventory.units}
    for _ in range(30):
        moves = {name: [0.003 * torch.randn(shape, generator=generator) for shape in shapes] for name, shapes in sizes.items()}
        made: Any = Moved(network, moves)
        measured.append(divergence.estimate(Study(network, made, part, ("int4-row",))).loss[:, 0])
    made = Moved(network, {name: [torch.full(shape, 0.003) for shape in shapes] for name, shapes in sizes.items()})
    draws = [hessian_trace.estimate(Study(network, made, part, ("int4-row",), 100 * s)) for s in range(5)]
    mine = np.stack([draw.loss[:, 0] for draw in draws])
    error = np.hypot(np.std(measured, axis=0, ddof=1) / 30**0.5, mine.std(axis=0, ddof=1) / 5**0.5)
    mean = np.mean(measured, axis=0)
    assert bool((error < 0.35 * mean).all())  # else the test says nothing
    assert bool((np.abs(mine.mean(axis=0) - mean) < 4.5 * error + 0.03 * mean).all())
    assert any("no labels" in note for note in draws[0].notes)
    assert "divergence" in draws[0].quantity


def test_probes_are_dealt_to_batches_and_say_how_much_they_scatter(tmp_path: Path) -> None:
    network, part = tiny()
    made, tables = renderings(tmp_path, network, FORMATS), []

    def keep(name: str, compute: Any) -> Floats:
        tables.append(compute())
        return np.asarray(tables[-1])

    found = hessian_trace.estimate(Study(network, made, part, FORMATS, steps=keep))
    assert [table.shape for table in tables] == [(3, 6)] * 3  # units, probes: 16 in all, or more
    assert "18 Hutchinson probes" in found.notes[0]
    assert len(found.notes) == 1
    per_batch = np.stack(tables).mean(axis=2)
    error = np.array(
        [[float(changes(network, made, unit, fmt)[0].square().sum()) for fmt in FORMATS] for unit in network.inventory.units]
    )
    sizes = np.array([unit.parameters for unit in network.inventory.units])
    expected = (per_batch.sum(axis=0) / 12 / sizes / 2)[:, None] * error
    assert found.loss == pytest.approx(expected, rel=1e-9)
    scatter = np.sqrt(np.stack(tables).var(axis=2, ddof=1).sum(axis=0) / 6) / per_batch.sum(axis=0)
    assert f"error of {np.median(scatter):.0%}" in found.notes[0]
    many = Part(part.batches * 4, part.digests, part.labels and part.labels * 4)
    hessian_trace.estimate(Study(network, made, many, FORMATS, steps=keep))
    assert tables[-1].shape == (3, 2)


def test_an_expert_that_no_token_reaches_has_no_curvature(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 1)
    made, part = renderings(tmp_path, network, FORMATS), models.fewer(models.calibration("mixtral").estimate, 2)
    found = hessian_trace.estimate(Study(network, made, part, FORMATS))
    assert found.stderr is not None
    for u, unit in enumerate(network.inventory.units):
        if unit.expert == 1:
            assert bool((found.loss[u] == 0).all())
            assert bool((found.stderr[u] == 0).all())


def test_an_output_that_is_no_number_is_named(tmp_path: Path) -> None:
    network, part = tiny()
    made = renderings(tmp_path, network, FORMATS)
    network.module.get_parameter("6.bias").data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        hessian_trace.estimate(Study(network, made, part, FORMATS))
