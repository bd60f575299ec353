"""top1: how many predictions change their first choice when one unit is stored in one format, measured.

    loss[u, f] = (predictions changed + shares) / (N + B)        N predictions in B batches

The first choice is the most likely token or class. Where the model gives a pooled vector, it is the nearest neighbour of
the changed vector among the untouched vectors of the part's other examples: a search with the changed model in an index
that the untouched one has made.

A count cannot tell the formats that change no prediction of a small part, which are most of those worth having. So each
batch has one prediction more, which has changed by this share: the mean over the batch of d^2 / (d^2 + m^2), m the margin
of the first choice over the second, d the change of that margin. By Cantelli's inequality this bounds the chance that a
change of standard deviation d takes the lead away. It settles ties and fades with the size of a batch. Ours; toolkits
(AIMET, NNCF) that search by accuracy count alone.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...kernels.float64 import as_float64
from ..estimate import Estimate, ratio_estimate
from ..measured import Trial, counted, make_bench, measure_alone, prediction_counts
from ..study import Study


def estimate(study: Study) -> Estimate:
    """The share of predictions that change for every unit and format.

    Raises ValueError for pooled vectors of fewer than three examples: there is no second neighbour.
    """
    network, part, bench = study.network, study.data, make_bench(study)
    pooled = network.inventory.outputs == "pooled"
    if pooled and part.examples < 3:
        raise ValueError(f"top1 compares nearest neighbours and needs 3 examples or more; the data has {part.examples}")
    score = partial(summed_changes, index=torch.cat(bench.references) if pooled else None)
    tables = measure_alone(bench, score)
    counts = [count + 1 for count in prediction_counts(network, part)]
    quantity = "share of nearest neighbours changed" if pooled else "share of first choices changed"
    note = "each batch counts one prediction more, changed by the share that the margins suggest: it settles ties of the count"
    return ratio_estimate(tables, counts, quantity, (note,))


def summed_changes(trial: Trial, index: Tensor | None) -> float:
    """Predictions of the batch whose first choice changed, and the share of the one added."""
    if index is None:
        before, after = (output.flatten(0, -2) for output in (trial.reference, trial.output))
    else:
        own = (trial.reference[:, None] == index).all(-1)  # an example is not its own neighbour
        before, after = ((output @ index.T).masked_fill(own, -2.0) for output in (trial.reference, trial.output))
    before, after = (counted(trial.network, scores, trial.batch) for scores in (before, after))
    return changes(before, after) + near_changes(before, after)


def changes(before: Tensor, after: Tensor) -> int:
    """Rows of `after` (rows, candidates) whose largest entry stands elsewhere than in `before`."""
    return int((before.argmax(-1) != after.argmax(-1)).sum())


def near_changes(before: Tensor, after: Tensor) -> float:
    """The mean over rows of d^2 / (d^2 + m^2): from 0 for no change to 1, one half where the lead is just lost."""
    first = before.topk(2, dim=-1).indices
    margin, moved = (as_float64(scores.gather(-1, first)).diff(dim=-1).squeeze(-1).neg() for scores in (before, after))
    change = (moved - margin).square()
    return float((change / (change + margin.square()).clamp(min=torch.finfo(torch.float64).tiny)).mean())
