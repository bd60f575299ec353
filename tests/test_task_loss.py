from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import models
from bitplan.sensitivity.network import run, task_objective
from bitplan.sensitivity.task_loss import has_labels, labelled, mean_task_loss, part_has_labels


@pytest.mark.parametrize("kind", ["llama", "mixtral", "masked", "bert", "vit", "dinov2", "residual"])
@pytest.mark.parametrize("labels", [None, [0, 9, 3], [0, 10, 3]])
def test_it_knows_when_the_objective_draws_labels(kind: str, labels: list[int] | None) -> None:
    """The objective draws exactly where the data has no labels that the model could give."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 1)
    batch = {name: tensor[:1].repeat(3, *[1] * (tensor.dim() - 1)) for name, tensor in part.batches[0].items()}
    classes = None if labels is None else torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    output = run(network, batch)
    task_objective(network, output, batch, classes, generator)
    drew = not torch.equal(generator.get_state(), before)
    assert has_labels(network, output, classes) is not drew
    whole = replace(part, batches=(batch,), labels=None if classes is None else (classes,))
    assert part_has_labels(network, whole) is not drew


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_it_is_the_loss_that_transformers_reports(kind: str) -> None:
    network, batch = models.network(kind), models.calibration(kind, tokens=600).estimate.batches[0]
    mask = torch.ones_like(batch["input_ids"])
    mask[-1, 7:] = 0
    masked = {**batch, "attention_mask": mask}
    reported = network.module(**masked, labels=torch.where(mask.bool(), batch["input_ids"], -100)).loss
    generator = torch.Generator()
    assert float(mean_task_loss(network, run(network, masked), masked, None, generator)) == pytest.approx(
        float(reported), rel=1e-5
    )
    assert labelled(network, masked) == int(mask[:, 1:].sum())
    assert labelled(network, batch) == batch["input_ids"][:, 1:].numel()


def test_a_single_token_has_nothing_to_follow() -> None:
    network, batch = models.network("llama"), {"input_ids": torch.tensor([[5]])}
    assert labelled(network, batch) == 0
    assert float(mean_task_loss(network, run(network, batch), batch, None, torch.Generator())) == 0
