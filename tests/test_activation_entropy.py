from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import models
from bitplan.sensitivity.blocks import blocks
from bitplan.sensitivity.changes import relative_errors
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import activation_entropy
from bitplan.sensitivity.metrics.activation_entropy import CLUSTERS, cluster_counts, entropy, kmeans, normalised
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study

FORMATS = ("int3-g32-asym", "int5-row")


def test_worked_examples() -> None:
    counts = np.array([[25.0, 25, 25, 25], [70, 10, 10, 10], [97, 1, 1, 1]])
    found = entropy(counts)
    assert found.tolist() == pytest.approx([2.0, 1.35678, 0.24194], abs=5e-6)
    assert list(np.argsort(found)) == [2, 1, 0]  # the order in which layers go down to the fewest bits


def test_entropy_of_one_cluster_and_of_none_is_zero() -> None:
    assert entropy(np.array([[5.0, 0], [0, 0]])).tolist() == [0, 0]
    assert entropy(np.array([3.0, 5, 0])) == pytest.approx(entropy(np.array([30.0, 50])))


def planted(sizes: list[int], seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Groups far from each other and narrow, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    centres = 100 * torch.eye(len(sizes), 8)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[torch.randperm(sum(sizes), generator=generator)]
    return centres[group] + 0.1 * torch.randn(sum(sizes), 8, generator=generator), group.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_groups_far_apart_are_found(seed: int) -> None:
    vectors, group = planted([25, 25, 25, 25], seed)
    labels = kmeans(vectors, 4, torch.Generator().manual_seed(seed)).tolist()
    assert len({*zip(group, labels, strict=True)}) == 4
    assert entropy(np.bincount(labels).astype(float)) == pytest.approx(2)


def test_against_scipy() -> None:
    """From the same data both come to local optima about as good."""
    from scipy.cluster.vq import kmeans2

    vectors = torch.randn(600, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 1.0])
    labels = kmeans(vectors, 10, torch.Generator().manual_seed(0)).numpy()
    _, theirs = kmeans2(vectors.double().numpy(), 10, iter=20, minit="++", rng=0)

    def within(labels: npt.NDArray[np.int64]) -> float:
        return sum(
            float(vectors[labels == c].var(0, correction=0).sum()) * int((labels == c).sum()) for c in set(labels.tolist())
        )

    assert within(labels) == pytest.approx(within(theirs), rel=0.1)
    assert within(labels) < 0.3 * within(np.zeros(600, dtype=int))


def test_fewer_different_vectors_than_clusters() -> None:
    labels = kmeans(torch.tensor([[1.0], [1.0], [2.0], [2.0]]), 3, torch.Generator().manual_seed(0))
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_the_scale_of_tokens_and_of_channels_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 6, generator=generator)
    tokens = torch.rand(50, 1, generator=generator) + 0.5
    assert torch.allclose(normalised(vectors * tokens), normalised(vectors), atol=1e-5)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    found = normalised(vectors)
    assert torch.allclose(found.square().mean(0), torch.ones(6), atol=1e-4)
    assert torch.allclose(found * unit.std(0, correction=0) + unit.mean(0), unit, atol=1e-5)
    assert torch.equal(normalised(torch.ones(3, 2)), torch.zeros(3, 2))  # a channel that never changes


@pytest.mark.parametrize("kind", ["llama", "bert", "dinov2", "residual"])
def test_the_loss_is_entropy_times_weights_times_error(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    units = network.inventory.units
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in units for fmt in FORMATS])
    study = Study(network, made, part, FORMATS, 3)
    found = activation_entropy.estimate(study)
    held = blocks(units)
    counts = cluster_counts(network, part, tuple(held), 3)
    assert counts.shape == (3, 1 + len(held), CLUSTERS)
    entropies = entropy(counts.sum(axis=0))
    assert bool((entropies > 0).all())
    damage = np.array([unit.parameters for unit in units])[:, None] * relative_errors(study)
    bits = found.loss / damage
    order = list(held)
    for u, unit in enumerate(units):
        inside = [1 + order.index(path) for path, members in held.items() if u in members]
        outside = [0] if u == 0 else [len(order)]  # the embedding or first convolution; the head
        (site,) = inside or outside
        assert bits[u] == pytest.approx(entropies[site]), unit.name
    assert found.stderr is not None
    assert bool((found.stderr > 0).any())
    assert any("in no block" in note for note in found.notes)


def test_as_many_vectors_are_counted_as_there_are_tokens() -> None:
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 3)
    counts = cluster_counts(network, part, tuple(blocks(network.inventory.units)), 0)
    assert counts.sum(axis=2).tolist() == [[batch["input_ids"].numel()] * 3 for batch in part.batches]
    tokens = sum(batch["input_ids"].numel() for batch in part.batches)
    assert (counts.sum(axis=0) > 0).sum(axis=1).max() <= tokens // 8


def test_a_network_without_blocks_is_refused(tmp_path: Path) -> None:
    module = make_plain(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    network = Network(module, take_inventory(module, model_id="m", family="vision", outputs="classes"))
    made = Renderings(tmp_path, network, "nearest", None)
    part = models.fewer(models.calibration("vit").estimate, 1)
    with pytest.raises(ValueError, match="this one has none; use output_error"):
        activation_entropy.estimate(Study(network, made, part, FORMATS))
