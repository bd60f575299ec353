"""kl_fisher by whole sequences, and with the data's labels (empirical_fisher): both against gradients by autograd."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import models
from bitplan.sensitivity import flow
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.metrics import divergence, empirical_fisher, kl_fisher, kl_fisher_sequence
from bitplan.sensitivity.network import Network, predictions, random_direction, run
from bitplan.sensitivity.study import Study
from loops import by_weight, changes, renderings, rows, seen

Floats = npt.NDArray[np.float64]
FORMATS = ("int3-g32-asym", "int4-g64")


def estimate(metric: Any, network: Network, made: Any, part: Part, seed: int = 3) -> Floats:
    loss: Floats = metric.estimate(Study(network, made, part, FORMATS, seed)).loss
    return loss


def by_example(network: Network, made: Any, part: Part, each: Any) -> Floats:
    """1/(2N) sum over examples of <dW, gradient of the example's own scalar>^2; `each(index, output, batch)` gives those."""
    total, count = np.zeros((len(network.inventory.units), len(FORMATS))), 0
    moves = [[changes(network, made, unit, fmt) for fmt in FORMATS] for unit in network.inventory.units]
    for index, batch in enumerate(part.batches):
        count += predictions(network, batch)
        for gradients in by_weight(network, lambda: list(each(index, run(network, batch), batch))):  # noqa: B023
            for u, unit in enumerate(network.inventory.units):
                for f in range(len(FORMATS)):
                    pairs = zip(unit.matrices, moves[u][f], strict=True)
                    total[u, f] += sum(float((gradients[f"{m.module}.weight"] * delta).sum()) for m, delta in pairs) ** 2
    return np.asarray(total / (2 * count))


def drawn(network: Network, index: int, output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The sampled objective, as it is drawn for this batch, of each sequence by itself."""
    generator = torch.Generator().manual_seed(3 + index)
    return (random_direction(network, output, batch, generator) * output).sum((1, 2))


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "masked"])
def test_a_sequence_is_squared_as_a_whole(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind, tokens=600).estimate, 2)
    if kind == "masked":  # cut the second sequence short
        mask = torch.ones_like(part.batches[0]["input_ids"])
        mask[1:, 5:] = 0
        part = Part(({"input_ids": part.batches[0]["input_ids"] * mask, "attention_mask": mask},), part.digests)
    assert len(part.batches[0]["input_ids"]) > 1  # several sequences, not to be mixed up
    made = renderings(tmp_path, network, FORMATS)
    expected = by_example(network, made, part, partial(drawn, network))
    found = kl_fisher_sequence.estimate(Study(network, made, part, FORMATS, 3))
    assert found.loss == pytest.approx(expected, rel=2e-3, abs=1e-5 * expected.max())
    assert found.quantity == "nats per token"


@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet"])
def test_one_output_an_example_is_kl_fisher(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    assert estimate(kl_fisher_sequence, network, made, part).tobytes() == estimate(kl_fisher, network, made, part).tobytes()


def test_sequences_of_one_token_have_no_covariance(tmp_path: Path) -> None:
    network = models.network("untied")
    made = renderings(tmp_path, network, FORMATS)
    part = Part(({"input_ids": torch.arange(1, 40)[:, None]},), frozenset("a"))
    found, tokens = estimate(kl_fisher_sequence, network, made, part), estimate(kl_fisher, network, made, part)
    assert found == pytest.approx(tokens, rel=1e-3, abs=1e-6 * tokens.max())


def test_it_is_the_measured_divergence_for_small_changes_of_every_unit(tmp_path: Path) -> None:
    """Keys, values and embeddings included, for which the form by tokens neglects something: within 4.5 standard errors of the
    mean over draws, and 3 % for what is not second order."""
    network, part = models.network("untied"), models.fewer(models.calibration("untied", tokens=600).estimate, 1)
    made = renderings(tmp_path, network, ("int6-g32-asym",))

    def once(metric: Any, seed: int) -> Floats:
        loss: Floats = metric.estimate(Study(network, made, part, ("int6-g32-asym",), seed)).loss[:, 0]
        return loss

    draws = np.stack([once(kl_fisher_sequence, seed) for seed in range(70)])
    tokens = np.stack([once(kl_fisher, seed) for seed in range(20)])
    measured, error = once(divergence, 0), draws.std(axis=0, ddof=1) / 70**0.5
    assert bool((error < 0.25 * measured).all())  # else the test says nothing
    assert bool((np.abs(draws.mean(axis=0) - measured) < 4.5 * error + 0.03 * measured).all())
    off = np.abs(tokens.mean(axis=0) - measured) / (tokens.std(axis=0, ddof=1) / 20**0.5 + 0.03 * measured / 4.5)
    assert off.max() > 4.5  # and the form by tokens does not pass


def follows(index: int, output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["input_ids"]
    return output.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].sum(1)


@pytest.mark.parametrize("kind", ["untied", "mixtral"])
def test_the_empirical_form_takes_the_next_token(kind: str, tmp_path: Path) -> None:
    """Row by row: g_t^T dW x_t, an expert's matrices summed before squaring."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    total, count = np.zeros((len(network.inventory.units), len(FORMATS))), 0
    for batch in part.batches:
        count += predictions(network, batch)
        found = seen(network, batch, lambda output: follows(0, output, batch).sum())  # noqa: B023
        for u, unit in enumerate(network.inventory.units):
            for f, fmt in enumerate(FORMATS):
                slopes: Any = 0.0
                for one in (one for one in found if one.use.unit.name == unit.name):
                    x, g = rows(one)
                    slopes = slopes + ((g @ changes(network, made, unit, fmt)[one.use.matrix]) * x).sum(1)
                total[u, f] += float((slopes**2).sum())
    mine = empirical_fisher.estimate(Study(network, made, part, FORMATS))
    assert mine.loss == pytest.approx(total / (2 * count), rel=2e-3, abs=1e-5 * total.max() / count)
    assert mine.quantity != network.quantity  # it is no divergence


@pytest.mark.parametrize("kind", ["vit", "residual"])
def test_the_empirical_form_takes_the_class_of_an_image(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    labels = tuple(torch.arange(len(batch["pixel_values"])) % 10 for batch in part.batches)
    part, made = replace(part, labels=labels), renderings(tmp_path, network, FORMATS)
    expected = by_example(
        network, made, part, lambda index, output, batch: -functional.cross_entropy(output, labels[index], reduction="none")
    )
    found = estimate(empirical_fisher, network, made, part)
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-5 * expected.max())


@pytest.mark.parametrize("kind", ["vit", "bert", "masked"])
def test_without_labels_the_empirical_form_is_kl_fisher(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "DRAWS", dict.fromkeys(flow.DRAWS, 1))
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    assert estimate(empirical_fisher, network, made, part).tobytes() == estimate(kl_fisher, network, made, part).tobytes()


def test_other_labels_are_another_estimate_only_where_they_are_drawn(tmp_path: Path) -> None:
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    assert bool((estimate(empirical_fisher, network, made, part, 0) == estimate(empirical_fisher, network, made, part, 9)).all())
    sampled = [estimate(kl_fisher_sequence, network, made, part, seed) for seed in (0, 9)]
    assert not bool((sampled[0] == sampled[1]).any())
