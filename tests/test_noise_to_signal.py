from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from bitplan.sensitivity.metrics import noise_to_signal
from bitplan.sensitivity.network import run
from bitplan.sensitivity.probe import uses
from bitplan.sensitivity.render import Renderings, rendered_transposed
from bitplan.sensitivity.study import Study

FORMATS = ("int3-g32-asym", "int5-row")


@pytest.mark.parametrize("kind", ["llama", "mixtral", "dinov2", "resnet"])
@torch.no_grad()
def test_it_is_the_energy_of_what_modules_give_out_too_much(kind: str, tmp_path: Path) -> None:
    """Every module is called twice on what it is fed: with its weights, biases aside, and with those of the format."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, FORMATS[0]) for unit in network.inventory.units])
    noise, signal = np.zeros((2, len(part.batches), len(network.inventory.units)))
    for b, batch in enumerate(part.batches):
        for u, unit in enumerate(network.inventory.units):
            for use in uses(network, [unit]):
                plain = copy.deepcopy(network.module.get_submodule(use.module))
                if getattr(plain, "bias", None) is not None:
                    plain.register_parameter("bias", None)
                changed = copy.deepcopy(plain)
                rendered = rendered_transposed(made(unit, FORMATS[0])[use.matrix]).T
                changed.weight = torch.nn.Parameter(rendered.reshape(plain.get_parameter("weight").shape))

                def add(module, inputs, output, b=b, u=u, plain=plain, changed=changed):  # type: ignore[no-untyped-def]
                    clean = plain(inputs[0])
                    noise[b, u] += float((changed(inputs[0]) - clean).double().square().sum())
                    signal[b, u] += float(clean.double().square().sum())

                handle = network.module.get_submodule(use.module).register_forward_hook(add)
                run(network, batch)
                handle.remove()
    found = noise_to_signal.estimate(Study(network, made, part, FORMATS[:1]))
    assert found.loss[:, 0] == pytest.approx(noise.sum(0) / signal.sum(0), rel=1e-4)
    without = [np.delete(noise, b, 0).sum(0) / np.delete(signal, b, 0).sum(0) for b in range(3)]
    expected = np.sqrt(2 / 3 * np.square(np.array(without) - np.mean(without, axis=0)).sum(axis=0))
    assert found.stderr is not None
    assert found.stderr[:, 0] == pytest.approx(expected, rel=1e-2)  # of differences of ratios that agree in two digits
    assert bool((found.loss > 0).all())


def test_an_expert_that_no_token_reaches_has_no_noise(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 0)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, "int3-row") for unit in network.inventory.units])
    part = models.fewer(models.calibration("mixtral").estimate, 3)
    loss = noise_to_signal.estimate(Study(network, made, part, ("int3-row",))).loss
    unreached = [unit.name for u, unit in enumerate(network.inventory.units) if loss[u, 0] == 0]
    assert unreached == [f"model.layers.{layer}.mlp.experts.0" for layer in range(2)]


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 0.0), (0.5, 3.010299956639812), (1e-6, 60.0)])
def test_decibels(ratio: float, expected: float) -> None:
    assert noise_to_signal.decibels(ratio) == pytest.approx(expected, abs=1e-12)


def test_six_decibels_a_bit(tmp_path: Path) -> None:
    """Halving the step of a uniform grid quarters the noise: 6.02 dB, over the units of a model."""
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 2)
    formats = ("int6-row-asym", "int7-row-asym", "int8-row-asym")
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in formats])
    loss = noise_to_signal.estimate(Study(network, made, part, formats)).loss
    gained = np.diff([[noise_to_signal.decibels(ratio) for ratio in row] for row in loss])
    assert gained.mean(axis=0) == pytest.approx(20 * np.log10(2), abs=0.2)  # units are few, and scales are rounded to fp16
