"""wanda: squared weight errors, each weighed by the strength of its input, 1/N sum_ij (||x_j||_2 |dW_ij|)^2.

||x_j||_2 is the norm of input j over all rows of the part, dW = W_format - W, N the number of predictions. Wanda (Sun et al.
2023) prunes the weights of least |W_ij| ||x_j||; here the change that a format makes stands in the place of the weight.
||x_j||^2 is the diagonal H_jj of the layer's Hessian, so this is `output_error`, tr(dW H dW^T) / N, with H's off-diagonal
entries left out: equal to it where inputs are uncorrelated, larger than it where GPTQ let errors of correlated inputs cancel.
"""

from __future__ import annotations

from functools import partial

from ..column_error import weighted_columns
from ..flow import Flow, Passage, estimate_flow
from ..report import Floats


def sums(passage: Passage) -> Floats:
    """sum_ij ||x_j||^2 dW_ij^2 for one batch, (units, formats)."""
    return weighted_columns(passage, lambda rows: rows.x.square().sum(dim=1))


FLOW = Flow(sums, quantity="squared output error of uncorrelated inputs")
estimate = partial(estimate_flow, FLOW)
