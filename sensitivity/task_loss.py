"""The task loss: minus the log-likelihood of the data's own labels, and what stands in for it where there are none.

Causal language models have the next token, classifiers the classes of their examples where these are known. Encoders, pooled
vectors and unlabelled images have nothing: `task_objective` then draws labels from the model's own output. See `network.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .calibration import Part
from .network import Batch, Network, predictions, run, task_objective


def has_labels(network: Network, output: Tensor, labels: Tensor | None) -> bool:
    """Whether `task_objective` takes labels of the data, not of its own drawing."""
    if _follows(network):
        return True
    return network.inventory.outputs == "classes" and labels is not None and output.shape[-1] > int(labels.max())


@torch.no_grad()
def part_has_labels(network: Network, part: Part) -> bool:
    """The same of a whole part, by its first batch."""
    return has_labels(network, run(network, part.batches[0]), part.classes(0))


def labelled(network: Network, batch: Batch) -> int:
    """How many terms `task_objective` adds up for `batch`: the first token of a text follows nothing."""
    if not _follows(network):
        return predictions(network, batch)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return int(mask[:, 1:].sum())


def mean_task_loss(network: Network, output: Tensor, batch: Batch, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """The loss that training programs report: the mean over the labels of one batch, nats."""
    return -task_objective(network, output, batch, labels, generator) / max(1, labelled(network, batch))


def _follows(network: Network) -> bool:
    return network.inventory.family in ("causal-lm", "mixture-of-experts") and network.inventory.outputs == "tokens"
