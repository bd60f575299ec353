from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
from bitplan.sensitivity import METRICS, flow, render
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.experts import Expert
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import divergence, kl_fisher
from bitplan.sensitivity.network import Batch, Network, predictions, random_direction, run, sampled_objective
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.probe import uses
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.units import Unit

Floats = npt.NDArray[np.float64]
FORMATS = ("int3-g32-asym", "int4-g64")


@pytest.fixture
def one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "DRAWS", dict.fromkeys(flow.DRAWS, 1))


def renderings(home: Path, network: Network, formats: tuple[str, ...] = FORMATS) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in formats])
    return made


def changes(network: Network, made: Renderings, unit: Unit, fmt: str) -> list[Tensor]:
    """dW of every matrix of a unit."""
    pairs = zip(unit_weights(network.module, unit), made(unit, fmt), strict=True)
    return [rendered_transposed(rendered).T - weight for weight, rendered in pairs]


def slopes_by_token(network: Network, batch: Batch, unit: Unit, change: list[Tensor], seed: int) -> Tensor:
    """sum over uses of g_t^T dW x_t for every token t, by autograd: the derivative of L by e_t, where the output of each
    use of the unit is W x_t + e_t dW x_t. `batch` without padding."""
    nudge = torch.zeros(batch["input_ids"].numel(), requires_grad=True)

    def add(path: str, delta: Tensor) -> torch.utils.hooks.RemovableHandle:
        module = network.module.get_submodule(path)
        owner = network.module.get_submodule(path.rpartition(".")[0])

        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            x = inputs[0]
            moved = delta[x] if isinstance(module, nn.Embedding) else functional.linear(x, delta)
            mine = nudge[owner.positions] if isinstance(owner, Expert) else nudge
            return output + mine.view(*output.shape[:-1], 1) * moved

        return module.register_forward_hook(hook)

    handles = [add(use.module, change[use.matrix]) for use in uses(network, [unit])]
    objective = sampled_objective(network, run(network, batch), batch, None, torch.Generator().manual_seed(seed))
    for handle in handles:
        handle.remove()
    (gradient,) = torch.autograd.grad(objective, nudge, allow_unused=True)
    return torch.zeros(len(nudge)) if gradient is None else gradient


def slopes_by_example(network: Network, batch: Batch, seed: int) -> list[dict[str, Tensor]]:
    """For every example the gradient of its own part of L by each weight, by autograd, one example after another."""
    names = [f"{m.module}.weight" for unit in network.inventory.units for m in unit.matrices]
    weights = [network.module.get_parameter(name).requires_grad_() for name in names]
    output = run(network, batch)
    generator = torch.Generator().manual_seed(seed)
    if network.inventory.outputs == "pooled":
        each = (torch.randn(output.shape, generator=generator) * output).sum(-1)
    else:
        each = (random_direction(network, output, batch, generator) * output).sum(-1)
    found = []
    for one in each:
        gradients = torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True)
        found.append({n: torch.zeros_like(w) if g is None else g for n, w, g in zip(names, weights, gradients, strict=True)})
    network.module.requires_grad_(False)
    return found


def slow_estimate(network: Network, made: Renderings, part: Part, formats: tuple[str, ...], seed: int) -> Floats:
    """The formula in the docstring of kl_fisher.py, unit by unit."""
    total, count = np.zeros((len(network.inventory.units), len(formats))), 0
    for index, batch in enumerate(part.batches):
        count += predictions(network, batch)
        by_example = [] if network.inventory.outputs == "tokens" else slopes_by_example(network, batch, seed + index)
        for u, unit in enumerate(network.inventory.units):
            for f, fmt in enumerate(formats):
                change = changes(network, made, unit, fmt)
                if network.inventory.outputs == "tokens":
                    slopes = slopes_by_token(network, batch, unit, change, seed + index)
                    total[u, f] += float(slopes.double().square().sum())
                    continue
                for gradients in by_example:
                    pairs = zip(unit.matrices, change, strict=True)
                    slope = sum(float((gradients[f"{m.module}.weight"].flatten(1) * delta).sum()) for m, delta in pairs)
                    total[u, f] += slope**2
    return np.asarray(total / (2 * count))


def grouped() -> Network:
    """Grouped and strided convolutions; 24 and 40 outputs a group, so that slices of 32 rows cross the groups."""
    torch.manual_seed(0)
    module = make_plain(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, bias=False),
            nn.Tanh(),
            nn.Conv2d(8, 72, (2, 3), groups=2, padding=(0, 1)),
            nn.Tanh(),
            nn.Conv2d(72, 80, 1, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(80, 6),
        )
    )
    return Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))


@pytest.mark.usefixtures("one_draw")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "vit", "bert", "resnet", "residual"])
def test_it_is_the_formula(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind, tokens=600).estimate, 2)
    assert all(len(tensor) > 1 for tensor in part.batches[0].values())  # several examples, not to be mixed up
    made = renderings(tmp_path, network)
    found = kl_fisher.estimate(Study(network, made, part, FORMATS, 3))
    expected = slow_estimate(network, made, part, FORMATS, 3)
    assert found.loss == pytest.approx(expected, rel=2e-3, abs=1e-5 * expected.max())  # float32 against float32, other orders
    assert found.quantity == network.quantity


@pytest.mark.parametrize("kind", ["llama", "mixtral", "vit", "grouped"])
def test_slices_of_a_matrix_add_up(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large matrix is unpacked 32 rows at a time; the smallest slices must give what the whole matrix gives."""
    network = grouped() if kind == "grouped" else models.network(kind)
    part = models.fewer(models.calibration("resnet" if kind == "grouped" else kind).estimate, 2)
    made = renderings(tmp_path, network)
    whole = kl_fisher.estimate(Study(network, made, part, FORMATS)).loss
    monkeypatch.setattr(render, "ENTRIES_AT_ONCE", 1)
    sliced = kl_fisher.estimate(Study(network, made, part, FORMATS)).loss
    assert sliced == pytest.approx(whole, rel=1e-3, abs=1e-6 * whole.max())


@pytest.mark.parametrize("kind", ["masked", "mixtral"])
def test_padded_tokens_have_no_part(kind: str, tmp_path: Path) -> None:
    network = models.network(kind)
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    batch = {"input_ids": torch.arange(1, 19).view(2, 9) * mask, "attention_mask": mask}
    part, made = Part((batch,), frozenset({"a", "b"})), renderings(tmp_path, network)
    found = kl_fisher.estimate(Study(network, made, part, FORMATS))
    expected = slow_estimate(network, made, part, FORMATS, 0)
    assert found.loss == pytest.approx(expected, rel=2e-3, abs=1e-5 * expected.max())
    assert found.stderr is None  # one batch


LAST = "model.layers.1"
LOCAL = {f"{LAST}.self_attn.o_proj", f"{LAST}.mlp.gate_proj", f"{LAST}.mlp.up_proj", f"{LAST}.mlp.down_proj", "lm_head"}


@pytest.mark.parametrize("kind", ["untied", "vit", "bert", "residual"])
def test_it_is_the_measured_divergence_for_small_changes(kind: str, tmp_path: Path) -> None:
    """At 6 bits the divergence is second order, so the mean over many draws of labels must come to what is measured: within
    4.5 standard errors of that mean, and 3 % for what is not second order. A causal model's units are those that act on one
    position at a time, for which the form by tokens neglects nothing."""
    network = models.network(kind)
    if kind == "untied":
        units = tuple(unit for unit in network.inventory.units if unit.name in LOCAL)
        network = Network(network.module, type(network.inventory)(**{**network.inventory.__dict__, "units": units}))
    formats, part = ("int6-g32-asym",), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network, formats)
    draws = np.stack([kl_fisher.estimate(Study(network, made, part, formats, 10 * seed)).loss for seed in range(24)])
    measured = divergence.estimate(Study(network, made, part, formats)).loss
    error = draws.std(axis=0, ddof=1) / 24**0.5
    assert bool((error < 0.35 * measured).all())  # else the test says nothing
    assert bool((np.abs(draws.mean(axis=0) - measured) < 4.5 * error + 0.03 * measured).all())


def test_draws_of_a_batch_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four draws are the mean of four estimates of one draw, each with its own seed."""
    network, part = models.network("bert"), models.fewer(models.calibration("bert").estimate, 2)
    made = renderings(tmp_path, network)
    found = kl_fisher.estimate(Study(network, made, part, FORMATS, 5))
    monkeypatch.setattr(flow, "DRAWS", dict.fromkeys(flow.DRAWS, 1))
    each = [kl_fisher.estimate(Study(network, made, part, FORMATS, 5 + flow.seed_of(0, 0, draw))) for draw in range(4)]
    assert found.loss == pytest.approx(np.mean([one.loss for one in each], axis=0), rel=1e-12)
    assert found.stderr is not None
    assert bool((found.stderr > 0).all())


@pytest.mark.usefixtures("one_draw")
def test_standard_errors_come_from_batches(tmp_path: Path) -> None:
    network, part = models.network("vit"), models.fewer(models.calibration("vit").estimate, 5)
    made, sums = renderings(tmp_path, network), []

    def keep(name: str, compute: object) -> Floats:
        sums.append(compute())  # type: ignore[operator]
        return np.asarray(sums[-1])

    found = kl_fisher.estimate(Study(network, made, part, FORMATS, steps=keep))
    assert found.batches == len(sums) == 5
    counts = np.array([float(predictions(network, batch)) for batch in part.batches])
    ratio = np.sum(sums, axis=0) / counts.sum()
    assert found.loss == pytest.approx(ratio, rel=1e-12)
    residual = np.stack(sums) - ratio * counts[:, None, None]
    assert found.stderr == pytest.approx(np.sqrt(5 / 4 * np.square(residual).sum(0)) / counts.sum(), rel=1e-9)


def test_an_expert_that_no_token_reaches_loses_nothing(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 1)
    made = renderings(tmp_path, network)
    found = kl_fisher.estimate(Study(network, made, models.calibration("mixtral").estimate, FORMATS))
    for u, unit in enumerate(network.inventory.units):
        assert bool((found.loss[u] == 0).all()) is (unit.expert == 1)


def test_data_that_the_weights_were_rounded_on_is_refused(tmp_path: Path) -> None:
    network, calibration = models.network("llama"), models.calibration("llama")
    made = Renderings(tmp_path, network, "gptq", calibration.render)
    with pytest.raises(ValueError, match="stands in two parts"):
        METRICS["kl_fisher"].estimate(Study(network, made, calibration.render, FORMATS))


def test_other_labels_give_another_estimate(tmp_path: Path) -> None:
    network, part = models.network("vit"), models.fewer(models.calibration("vit").estimate, 2)
    made = renderings(tmp_path, network)
    one, two = (kl_fisher.estimate(Study(network, made, part, FORMATS, seed)).loss for seed in (0, 100))
    assert not bool((one == two).any())
