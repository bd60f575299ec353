"""What is measured by doing it: units are stored in a format, the network runs, and its output is compared.

A score is any function of one trial (one batch, the output of the untouched network and that of the changed one) that
gives a sum over the batch's predictions. The untouched outputs are computed once; every measurement is one forward pass
a batch. The weights are put back whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .calibration import Part
from .estimate import empty_table, measured_pairs
from .network import Batch, Network, divergence, predictions, run
from .render import Renderings, rendered_transposed, unit_weights
from .report import Floats
from .study import Study
from .units import Unit


@dataclass(frozen=True, eq=False)
class Trial:
    """One batch through the untouched network (`reference`) and through the changed one (`output`)."""

    network: Network
    changed: tuple[Unit, ...]
    batch: Batch
    labels: Tensor | None
    reference: Tensor
    output: Tensor


Score = Callable[[Trial], float]


def summed_divergence(trial: Trial) -> float:
    """The network's own divergence, summed over the predictions of the batch."""
    return float(divergence(trial.network, trial.reference, trial.output, trial.batch).sum())


def prediction_counts(network: Network, part: Part) -> list[int]:
    return [predictions(network, batch) for batch in part.batches]


def counted(network: Network, each: Tensor, batch: Batch) -> Tensor:
    """`each`, rows of one a prediction and padding, without the padding."""
    if network.inventory.outputs == "tokens" and "attention_mask" in batch:
        return each[batch["attention_mask"].flatten().bool().to(each.device)]
    return each


@contextmanager
def stored(network: Network, renderings: Renderings, pairs: Sequence[tuple[Unit, str]]) -> Iterator[None]:
    """While open, each unit of `pairs` holds the numbers of its format."""
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        try:
            for unit, fmt in pairs:
                # Views: writing to them changes the module.
                for weight, made in zip(unit_weights(network.module, unit), renderings(unit, fmt), strict=True):
                    kept.append((weight, weight.clone()))
                    weight.copy_(rendered_transposed(made).T)
            yield
        finally:
            for weight, old in kept:
                weight.copy_(old)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every trial of a study has in common; `references` are the untouched outputs, one a batch."""

    study: Study
    references: tuple[Tensor, ...]

    @torch.no_grad()
    def sums(self, score: Score, pairs: Sequence[tuple[Unit, str]]) -> Floats:
        """The score of each batch, (batches,), with all of `pairs` stored at once.

        Raises ValueError, naming a unit, when a score is not finite.
        """
        network, part = self.study.network, self.study.data
        labels = part.labels or (None,) * len(self.references)
        changed = tuple(unit for unit, _ in pairs)
        with stored(network, self.study.renderings, pairs):
            found = np.array(
                [
                    score(Trial(network, changed, batch, known, reference, run(network, batch)))
                    for batch, known, reference in zip(part.batches, labels, self.references, strict=True)
                ]
            )
        if not np.isfinite(found).all():
            stored_in = f" with {pairs[0][0].name} in {pairs[0][1]}" if pairs else ""
            raise ValueError(f"the model's output is NaN or infinite{stored_in}; check the weights and the calibration data")
        return found


@torch.no_grad()
def make_bench(study: Study) -> Bench:
    return Bench(study, tuple(run(study.network, batch) for batch in study.data.batches))


def measure_alone(bench: Bench, score: Score) -> list[Floats]:
    """One table (units, formats) a batch: the score with each unit in each format alone, one step each."""
    study, units = bench.study, bench.study.units
    tables = np.stack([empty_table(units, study.formats)] * len(bench.references))
    for u, unit in enumerate(units):
        study.progress("estimate", u, len(units))
        for f, fmt in measured_pairs(unit, study.formats):
            tables[:, u, f] = study.steps(f"{unit.name} {fmt}", partial(bench.sums, score, [(unit, fmt)]))
    study.progress("estimate", len(units), len(units))
    return list(tables)
