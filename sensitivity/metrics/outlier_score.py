"""outlier_score: QuantMoE-Bench's outlier score of a matrix, times its weights and their relative error. Needs no data.

    score(W) = max over inputs j of ( max_i |W_ij| / mean_i |W_ij| )        over the outputs i of W (out, in)

QuantMoE-Bench (2024) gives more bits to the matrices with the highest score, whatever their size; so that what a byte buys
follows the score, the loss is score * (number of weights) * ||dW||^2 / ||W||^2. A unit of several matrices (an expert) has
the highest of their scores. Inputs whose weights are all zero have no score and are skipped. It was published for the
matrices of feed-forward layers; a wide table (embedding, head) has many outputs and therefore higher scores than a narrow
matrix of the same distribution.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...kernels.float64 import as_float64
from ..changes import relative_errors
from ..estimate import Estimate
from ..render import unit_weights
from ..report import Floats
from ..study import Study


def outlier_score(weight: Tensor) -> float:
    """score(W) of `weight` (out, in); 0 for a matrix of zeros."""
    magnitude = weight.abs()
    mean = as_float64(magnitude).mean(dim=0)
    used = mean > 0
    return float((as_float64(magnitude.amax(dim=0))[used] / mean[used]).amax()) if bool(used.any()) else 0.0


def estimate(study: Study) -> Estimate:
    """Score times weights times relative error for every unit and format; no sampling error."""
    units = study.units
    scores = [max(outlier_score(weight) for weight in unit_weights(study.network.module, unit)) for unit in units]
    importance: Floats = np.array([score * unit.parameters for score, unit in zip(scores, units, strict=True)])
    table = importance[:, None] * relative_errors(study, study.progress)
    return Estimate(table, None, 0, "outlier score times weights times relative error")
