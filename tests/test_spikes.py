from __future__ import annotations

import math

import pytest
import torch

import models
from bitplan.sensitivity.network import Network, run
from bitplan.sensitivity.spikes import BINS, Spike, find_spikes, protected, upper_quantile


def with_spike(network: Network, layer: int, size: float) -> None:
    """Make one entry of what `down` of `layer` is fed, of one token, `size`."""

    def plant(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        planted = inputs[0].clone()
        planted[0, 0, 7] = -size
        return (planted,)

    network.module.get_submodule(f"model.layers.{layer}.mlp.down_proj").register_forward_pre_hook(plant)


def test_a_planted_spike_is_found_and_protected() -> None:
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 3)
    assert protected(find_spikes(network, part)) == ()
    with_spike(network, 1, 5000.0)
    told: list[tuple[str, int, int]] = []
    spikes = find_spikes(network, part, lambda *step: told.append(step))
    assert told == [("spikes", done, 3) for done in range(4)]
    found = {spike.unit: spike for spike in spikes}
    assert list(found) == [unit.name for unit in network.inventory.units]  # the tied table is seen as the head that it is
    name = "model.layers.1.mlp.down_proj"
    assert found[name].largest == 5000
    assert found[name].ratio > 100
    assert protected(spikes) == (name,)
    assert protected(spikes, threshold=found[name].ratio) == ()
    assert len(protected(spikes, threshold=0.0)) == len(spikes)


def test_it_is_absmax_over_quantile() -> None:
    network, part = models.network("untied"), models.fewer(models.calibration("untied").estimate, 3)
    name = "model.layers.0.mlp.down_proj"
    seen: list[torch.Tensor] = []
    hook = network.module.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in part.batches:
            run(network, batch)
    hook.remove()
    x = torch.cat([inputs.flatten() for inputs in seen]).abs()
    (spike,) = (spike for spike in find_spikes(network, part) if spike.unit == name)
    exact = float(x.sort().values[math.ceil(0.999 * len(x)) - 1])
    assert spike.largest == float(x.max())
    assert exact <= spike.quantile <= exact * (1 + 2**-7)
    assert spike.ratio == spike.largest / spike.quantile
    assert "model.embed_tokens" not in [spike.unit for spike in find_spikes(network, part)]


def test_quantiles_of_histograms() -> None:
    """Of 2000 numbers the 1998th in order, rounded up to the end of its bin; powers of two begin bins."""

    def histogram(x: torch.Tensor) -> torch.Tensor:
        return torch.bincount(x.abs().view(torch.int32) >> 16, minlength=BINS)

    x = torch.ones(2000)
    x[:2] = 64
    assert upper_quantile(histogram(x)) == pytest.approx(1 + 2**-7, rel=1e-6)
    x[2] = -64
    assert upper_quantile(histogram(x)) == pytest.approx(64 * (1 + 2**-7), rel=1e-6)
    assert upper_quantile(histogram(torch.zeros(50))) == 0


def test_ratios_of_zeros() -> None:
    assert Spike("u", 0.0, 0.0).ratio == 0
    assert Spike("u", 3.0, 0.0).ratio == math.inf
    assert Spike("u", 3.0, 1.5).ratio == 2
    assert protected([Spike("u", 3.0, 0.0), Spike("v", 0.0, 0.0)]) == ("u",)


def test_of_an_experts_matrices_the_worse_one_counts() -> None:
    network, part = models.network("mixtral"), models.calibration("mixtral").estimate
    before = {spike.unit: spike for spike in find_spikes(network, part)}
    name = "model.layers.0.mlp.experts.1"
    unit = network.inventory.unit(name)

    def plant(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        planted = inputs[0].clone()
        planted[0, 3] = 0 if called else 900  # one of several thousand numbers
        called.append(module)
        return (planted,)

    called: list[torch.nn.Module] = []
    network.module.get_submodule(unit.matrices[1].module).register_forward_pre_hook(plant)
    after = {spike.unit: spike for spike in find_spikes(network, part)}
    assert after[name].largest > 800 > before[name].largest
    models.starve(network, 1)
    assert name not in [spike.unit for spike in find_spikes(network, part)]
