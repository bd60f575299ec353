"""block_importance: QuantMoE-Bench's importance of a block, how much it turns its input, times weights and relative error.

    importance(block) = mean over rows of 1 - cos(row in, row out)

A row is the vector of one token, or of one position of a feature map; the row that comes out has the residual connection in
it. QuantMoE-Bench (2024) gives more bits to the k blocks that change their input most; it trains a small net to predict the
cosine, while here it is measured in one forward pass. Its blocks are the expert layers alone, ours whole layers
(`blocks.py`). It ranks blocks whatever their size, so the loss of a unit is

    importance(its block) * (number of weights) * ||dW||^2 / ||W||^2

Units in no block (embeddings, heads), and those of a block whose output has another shape than its input, have importance 1,
as though nothing of the input were left. All units of a block share one number: the score says nothing about which of them
carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.float64 import as_float64
from ..blocks import blocks, watch_blocks
from ..changes import weight_damage
from ..estimate import Estimate, jackknife_estimate
from ..network import Batch, Network, run
from ..report import Floats
from ..study import Study


def estimate(study: Study) -> Estimate:
    """Importance times weights times relative error, standard errors from leaving out batches; one step a batch."""
    units, part = study.units, study.data
    held = blocks(units)
    sums = []
    for index, batch in enumerate(part.batches):
        study.progress("estimate", index, len(part.batches))
        sums.append(study.steps(f"batch {index}", partial(turns, study.network, batch, tuple(held))))
    weights = weight_damage(study)

    def table(total: Floats) -> Floats:
        importance = np.ones(len(units))
        for (turned, rows), members in zip(total, held.values(), strict=True):
            importance[members] = turned / rows if rows else 1.0
        return importance[:, None] * weights

    whole = np.sum(sums, axis=0)
    others = sum(len(members) for (_, rows), members in zip(whole, held.values(), strict=True) if not rows)
    others += len(units) - sum(len(members) for members in held.values())
    note = f"{others} of {len(units)} units are in no block that keeps the shape of its input and have importance 1"
    study.progress("estimate", len(part.batches), len(part.batches))
    quantity = "turn of the block times weights times relative error"
    return jackknife_estimate(sums, table, quantity, (note,) if others else ())


@torch.no_grad()
def turns(network: Network, batch: Batch, paths: Sequence[str]) -> Floats:
    """sum over rows of 1 - cosine, and the number of rows, for each of the blocks `paths`: (blocks, 2).

    No rows are counted for a block that changes the shape of what it is given.
    """
    found = np.zeros((len(paths), 2))

    def visit(path: str, received: Tensor, given: Tensor) -> None:
        if received.shape == given.shape:
            before, after = (functional.normalize(as_float64(rows), dim=-1) for rows in (received, given))
            turned = (before - after).square().sum(-1) / 2  # 1 - cosine, exact for small ones
            found[paths.index(path)] += float(turned.sum()), len(turned)

    with watch_blocks(network, batch, paths, visit):
        run(network, batch)
    return found
