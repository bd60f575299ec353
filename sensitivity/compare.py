"""Measure copies of a network against it: divergence and task figures, example by example, so that copies can be paired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .calibration import Part
from .network import Batch, Network, divergence, run
from .progress import Progress, silent
from .report import Floats

UNTOUCHED = "untouched"


@dataclass(frozen=True, eq=False)
class Measured:
    """One copy. `divergence` (examples,) is the mean over an example's predictions, `weights` (examples,) their number;
    `task` (examples,) is what the task's figure averages: log-likelihood a token, correct or not, cosine similarity."""

    divergence: Floats
    weights: Floats
    task: Floats

    @property
    def loss(self) -> float:
        return float(np.average(self.divergence, weights=self.weights))

    @property
    def loss_stderr(self) -> float:
        return standard_error(self.divergence, self.weights)


def standard_error(values: Floats, weights: Floats) -> float:
    """Standard error of the weighted mean of independent examples; NaN for fewer than two."""
    count = len(values)
    if count < 2:
        return float("nan")
    residual = weights * (values - np.average(values, weights=weights))
    return float(np.sqrt(count / (count - 1) * np.square(residual).sum()) / weights.sum())


@torch.no_grad()
def compare(network: Network, copies: Mapping[str, nn.Module], part: Part, progress: Progress = silent) -> dict[str, Measured]:
    """Every copy, and the network itself under the name `untouched`, on all examples of `part`."""
    collected: dict[str, list[tuple[Floats, Floats, Floats]]] = {name: [] for name in (UNTOUCHED, *copies)}
    for index, batch in enumerate(part.batches):
        progress("verify", index, len(part.batches))
        labels = part.classes(index)
        reference = run(network, batch)
        for name, module in ((UNTOUCHED, network.module), *copies.items()):
            output = reference if name == UNTOUCHED else run(network, batch, module)
            collected[name].append(_by_example(network, reference, output, batch, labels))
    progress("verify", len(part.batches), len(part.batches))
    return {name: Measured(*(np.concatenate([row[i] for row in rows]) for i in range(3))) for name, rows in collected.items()}


def task_name(network: Network, part: Part) -> str:
    """What `task_figure` is called for this network and data."""
    if network.inventory.outputs == "tokens":
        return "perplexity"
    if network.inventory.outputs == "pooled":
        return "cosine"
    return "agreement" if part.labels is None else "accuracy"


def task_figure(name: str, measured: Measured) -> float:
    """Perplexity exp(-mean log-likelihood), or the mean of the task's numbers."""
    mean = float(np.average(measured.task, weights=measured.weights))
    return float(np.exp(-mean)) if name == "perplexity" else mean


def _by_example(
    network: Network, reference: Tensor, output: Tensor, batch: Batch, labels: Tensor | None
) -> tuple[Floats, Floats, Floats]:
    each = divergence(network, reference, output, batch).cpu()
    examples = len(output)
    if network.inventory.outputs == "tokens":
        mask = batch["attention_mask"].cpu().bool() if "attention_mask" in batch else torch.ones(output.shape[:2]).bool()
        owner = torch.arange(examples)[:, None].expand(mask.shape)[mask]
        counts = torch.zeros(examples, dtype=torch.float64).index_add_(0, owner, torch.ones(len(owner), dtype=torch.float64))
        mean = torch.zeros(examples, dtype=torch.float64).index_add_(0, owner, each) / counts
        losses = functional.cross_entropy(output[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none")
        follows = mask[:, 1:]
        likelihood = -(losses.cpu().view(examples, -1) * follows).sum(1) / follows.sum(1).clamp(min=1)
        return mean.numpy(), counts.numpy(), likelihood.double().numpy()
    ones = np.ones(examples)
    if network.inventory.outputs == "pooled":
        return each.numpy(), ones, (reference * output).sum(-1).cpu().double().numpy()
    truth = reference.argmax(-1) if labels is None else labels
    return each.numpy(), ones, (output.argmax(-1) == truth).cpu().double().numpy()
