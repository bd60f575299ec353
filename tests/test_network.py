from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.network import Batch, Network, divergence, predictions, random_direction, run, sampled_objective

OUTPUTS = ["untied", "vit", "bert"]  # tokens, classes, pooled


def slow_divergence(p: Tensor, q: Tensor) -> float:
    """sum_v p_v log(p_v / q_v) by the definition, in Python's float64."""
    ps, qs = ([math.exp(v - max(row)) for v in row] for row in (p.tolist(), q.tolist()))
    ps, qs = [v / sum(ps) for v in ps], [v / sum(qs) for v in qs]
    return sum(a * math.log(a / b) for a, b in zip(ps, qs, strict=True))


def masked_batch() -> Batch:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    return {"input_ids": torch.tensor([[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]]), "attention_mask": mask}


@pytest.mark.parametrize("kind", models.KINDS)
@torch.no_grad()
def test_a_model_does_not_diverge_from_itself(kind: str) -> None:
    network = models.network(kind)
    batch = models.calibration(kind).estimate.batches[0]
    output = run(network, batch)
    apart = divergence(network, output, run(network, batch), batch)
    assert apart.shape == (predictions(network, batch),)
    assert apart.dtype == torch.float64
    assert not apart.any()


@pytest.mark.parametrize("kind", OUTPUTS)
@torch.no_grad()
def test_another_model_runs_in_its_place(kind: str) -> None:
    network, other = models.network(kind), models.network(kind, seed=1)
    batch = models.calibration(kind).estimate.batches[0]
    assert torch.equal(run(network, batch, other.module), run(other, batch))
    assert bool((divergence(network, run(network, batch), run(network, batch, other.module), batch) > 0).all())


@torch.no_grad()
def test_the_divergence_of_distributions_is_that_of_the_definition() -> None:
    network = models.network("untied")
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 3, 5, 40, generator=generator) * 2
    batch = {"input_ids": torch.zeros(3, 5, dtype=torch.int64)}
    expected = [slow_divergence(a, b) for a, b in zip(p.flatten(0, 1), q.flatten(0, 1), strict=True)]
    assert divergence(network, p, q, batch).tolist() == pytest.approx(expected, rel=1e-5)
    vit = models.network("vit")
    assert divergence(vit, p[0], q[0], {"pixel_values": torch.zeros(5, 1)}).tolist() == pytest.approx(expected[:5], rel=1e-5)
    assert divergence(vit, q[0], p[0], {"pixel_values": torch.zeros(5, 1)}).tolist() != pytest.approx(expected[:5], rel=0.01)


@torch.no_grad()
def test_masked_tokens_are_left_out() -> None:
    network, batch = models.network("masked"), masked_batch()
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 2, 5, 40, generator=generator)
    kept = [(0, t) for t in range(5)] + [(1, 0), (1, 1)]
    expected = [slow_divergence(p[i, t], q[i, t]) for i, t in kept]
    assert divergence(network, p, q, batch).tolist() == pytest.approx(expected, rel=1e-5)
    assert predictions(network, batch) == 7
    assert predictions(network, {"input_ids": batch["input_ids"]}) == 10


@torch.no_grad()
def test_pooled_divergence_is_the_cosine_distance_however_small() -> None:
    network = models.network("bert")
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(4, 48, generator=generator).double()
    for size in (1.0, 1e-3, 1e-6):
        v = u + size * torch.randn(4, 48, generator=generator).double()
        a, b = (x / x.norm(dim=-1, keepdim=True) for x in (u, v))
        exact = (a - b).square().sum(-1) / 2
        assert divergence(network, a, b, {}).tolist() == pytest.approx(exact.tolist(), rel=1e-9)
        assert (1 - (a * b).sum(-1)).tolist() == pytest.approx(exact.tolist(), rel=1e-3, abs=1e-15)


@pytest.mark.parametrize("kind", ["bert", "dinov2"])
@torch.no_grad()
def test_pooled_outputs_are_unit_vectors(kind: str) -> None:
    network = models.network(kind)
    output = run(network, models.calibration(kind).estimate.batches[0])
    assert output.norm(dim=-1).tolist() == pytest.approx([1.0] * len(output), abs=1e-6)


@torch.no_grad()
def test_the_mean_is_over_tokens_that_are_there() -> None:
    network, batch = models.network("bert"), masked_batch()
    hidden = network.module(**batch).last_hidden_state
    expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    assert torch.allclose(run(network, batch), expected / expected.norm(dim=-1, keepdim=True), atol=1e-6)
    short = {name: tensor[1:, :2] for name, tensor in batch.items()}
    assert torch.allclose(run(network, batch)[1], run(network, short)[0], atol=1e-5)  # padding changes nothing
    first = replace(network, pooling="first")
    assert torch.allclose(run(first, batch), nn.functional.normalize(hidden[:, 0], dim=-1), atol=1e-6)


@torch.no_grad()
def test_a_pooler_gives_the_vector_where_the_model_has_one() -> None:
    torch.manual_seed(0)
    config = models.hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    module = models.hf.ResNetModel(config).eval()
    network = Network(module, replace(models.network("bert").inventory, outputs="pooled"), "pooler")
    batch = models.calibration("resnet").estimate.batches[0]
    assert torch.allclose(run(network, batch), nn.functional.normalize(module(**batch).pooler_output.flatten(1), dim=-1))


def test_quantities_are_named() -> None:
    names = [models.network(kind).quantity for kind in OUTPUTS]
    assert names == ["nats per token", "nats per example", "cosine distance per example"]


def test_the_direction_has_the_fisher_information_as_its_second_moment() -> None:
    """Over all patterns of signs, by hand; and over draws."""
    network = models.network("vit")
    logits = torch.tensor([2.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    p = logits.softmax(-1)
    fisher = torch.diag(p) - p[:, None] * p
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    directions = signs * p.sqrt() - p * (signs * p.sqrt()).sum(-1, keepdim=True)
    assert torch.allclose(directions.T @ directions / len(signs), fisher, atol=1e-12)
    batch = {"pixel_values": torch.zeros(4000, 1)}
    many = random_direction(network, logits.expand(4000, -1), batch, torch.Generator().manual_seed(0))
    assert torch.allclose(many.T @ many / 4000, fisher, atol=0.02)


def test_the_objective_is_linear_in_the_output() -> None:
    network = models.network("vit")
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
    batch = {"pixel_values": torch.zeros(3, 1)}
    sampled_objective(network, logits, batch, None, torch.Generator().manual_seed(0)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad, random_direction(network, logits, batch, torch.Generator().manual_seed(0)))


def test_masked_tokens_have_no_part_in_the_objective() -> None:
    network, batch = models.network("masked"), masked_batch()
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sampled_objective(network, logits, batch, None, torch.Generator().manual_seed(0)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, batch["attention_mask"].bool())


def test_the_generator_decides_the_labels() -> None:
    network, batch = models.network("untied"), models.calibration("untied").estimate.batches[0]
    output = run(network, batch)
    a, b, c = (float(sampled_objective(network, output, batch, None, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1))
    assert a == b != c
