from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.compare import Measured, compare, standard_error, task_figure, task_name
from bitplan.sensitivity.network import divergence, run


def copies(kind: str) -> dict[str, nn.Module]:
    """The model itself, and one with a little noise on all its matrices."""
    noisy = models.network(kind).module
    generator = torch.Generator().manual_seed(0)
    for parameter in noisy.parameters():
        parameter.data = parameter + 0.02 * torch.randn(parameter.shape, generator=generator) * parameter.std() * (
            parameter.dim() > 1
        )
    return {"same": models.network(kind).module, "noisy": noisy}


@pytest.mark.parametrize("kind", ["llama", "bert", "vit"])
def test_untouched_and_the_same_model_have_no_loss(kind: str) -> None:
    network, part = models.network(kind), models.calibration(kind).verify
    found = compare(network, copies(kind), part)
    assert list(found) == ["untouched", "same", "noisy"]
    for name in ("untouched", "same"):
        assert found[name].loss == 0
        assert found[name].loss_stderr == 0
    assert found["noisy"].loss > 0
    assert found["noisy"].loss_stderr > 0
    for measured in found.values():
        assert measured.divergence.shape == measured.weights.shape == measured.task.shape == (part.examples,)
        assert (
            measured.weights.tolist() == [float(part.batches[0]["input_ids"].shape[1] if kind == "llama" else 1)] * part.examples
        )
    assert np.array_equal(found["untouched"].task, found["same"].task)


@torch.no_grad()
def test_examples_are_measured_one_by_one() -> None:
    """Of every example the mean of its own predictions, in the order of the data: so copies can be paired."""
    network, part = models.network("llama"), models.calibration("llama", tokens=512).verify
    merged = Part(
        tuple(
            {"input_ids": torch.cat([a["input_ids"], b["input_ids"]])}
            for a, b in zip(part.batches[::2], part.batches[1::2], strict=True)
        ),
        part.digests,
    )
    noisy = copies("llama")["noisy"]
    found = compare(network, {"noisy": noisy}, merged)["noisy"]
    for i, batch in enumerate(part.batches):
        for j, row in enumerate(batch["input_ids"]):
            alone = {"input_ids": row[None]}
            reference, output = run(network, alone), run(network, alone, noisy)
            at = i * len(batch["input_ids"]) + j
            assert found.divergence[at] == pytest.approx(float(divergence(network, reference, output, alone).mean()), rel=1e-3)
            likelihood = output[0, :-1].log_softmax(-1).gather(-1, row[1:, None]).mean()
            assert found.task[at] == pytest.approx(float(likelihood), rel=1e-5)


def test_progress_is_told() -> None:
    network, part = models.network("vit"), models.calibration("vit").verify
    told: list[tuple[int, int]] = []
    compare(network, {}, part, lambda stage, done, total: told.append((done, total)))
    assert told == [(done, len(part.batches)) for done in range(len(part.batches) + 1)]


def test_padding_counts_for_nothing() -> None:
    network = models.network("masked")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
    part = Part(({"input_ids": ids, "attention_mask": mask},), frozenset("ab"))
    noisy = copies("masked")["noisy"]
    found = compare(network, {"noisy": noisy}, part)["noisy"]
    alone = Part(({"input_ids": ids[1:, :2], "attention_mask": mask[1:, :2]},), frozenset("b"))
    short = compare(network, {"noisy": noisy}, alone)["noisy"]
    assert found.weights.tolist() == [4, 2]
    assert found.divergence[1] == pytest.approx(short.divergence[0], rel=1e-3)
    assert found.task[1] == pytest.approx(short.task[0], rel=1e-4)
    assert found.loss == pytest.approx((4 * found.divergence[0] + 2 * found.divergence[1]) / 6, rel=1e-12)


def test_accuracy_where_there_are_labels_agreement_where_there_are_none() -> None:
    network, part = models.network("vit"), models.calibration("vit").verify
    with torch.no_grad():
        outputs = [run(network, batch).argmax(-1) for batch in part.batches]
    labels = tuple((output + (torch.arange(len(output)) % 2)) % 10 for output in outputs)  # every second one is wrong
    labelled = replace(part, labels=labels)
    other = models.network("vit", seed=1)
    assert task_name(network, part) == "agreement"
    assert task_name(network, labelled) == "accuracy"
    agreement, accuracy = (compare(network, {"other": other.module}, which) for which in (part, labelled))
    assert task_figure("agreement", agreement["untouched"]) == 1
    assert task_figure("accuracy", accuracy["untouched"]) == 0.5
    with torch.no_grad():
        same = [run(other, batch).argmax(-1) == output for batch, output in zip(part.batches, outputs, strict=True)]
        right = [run(other, batch).argmax(-1) == label for batch, label in zip(part.batches, labels, strict=True)]
    assert agreement["other"].task.tolist() == torch.cat(same).double().tolist()
    assert accuracy["other"].task.tolist() == torch.cat(right).double().tolist()


def test_perplexity_and_cosine() -> None:
    llama, bert = models.network("llama"), models.network("bert")
    text, lines = models.calibration("llama").verify, models.calibration("bert").verify
    assert (task_name(llama, text), task_name(bert, lines)) == ("perplexity", "cosine")
    found = compare(llama, {}, text)["untouched"]
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(run(llama, batch)[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
            for batch in text.batches
        ]
    assert task_figure("perplexity", found) == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)
    noisy = compare(bert, copies("bert"), lines)["noisy"]
    assert 1 - task_figure("cosine", noisy) == pytest.approx(noisy.loss, rel=1e-2)  # one float32 number less another


def test_the_model_is_left_alone() -> None:
    network = models.network("llama")
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    compare(network, copies("llama"), models.calibration("llama").verify)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_the_standard_error_of_a_weighted_mean() -> None:
    values, weights = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 2.0])
    # mean 2.75; residuals -1.75, -0.75, 2.5; sqrt(3 / 2 * 9.875) / 4
    assert standard_error(values, weights) == pytest.approx(np.sqrt(1.5 * 9.875) / 4, rel=1e-12)
    assert standard_error(values, np.ones(3)) == pytest.approx(values.std(ddof=1) / np.sqrt(3), rel=1e-12)
    assert np.isnan(standard_error(values[:1], weights[:1]))
    measured = Measured(values, weights, values)
    assert (measured.loss, measured.loss_stderr) == (2.75, standard_error(values, weights))
