"""kl_fisher_sequence: kl_fisher by whole sequences, the covariance between the positions of a sequence kept.

    1/(2N) sum over examples of (sum over the example's rows t of g_t^T dW x_t)^2

Notation as in `kl_fisher.py`; N counts predictions, so the unit stays nats per token. The directions of a sequence's
positions are drawn independently, so the scores of different positions are uncorrelated in expectation while the unit's
rows are not: a changed key or value at one position moves the predictions of all later ones, and those are the terms that the
form by tokens drops. The price is noise: one square a sequence in place of one a token. For models with one output an example
the two are the same.
"""

from __future__ import annotations

from functools import partial

from ..flow import Flow, Passage, estimate_flow
from ..network import sampled_objective
from ..report import Floats
from ..slopes import example_slopes


def sums(passage: Passage) -> Floats:
    """Half the summed squares of one batch, (units, formats)."""
    return example_slopes(passage) / 2


FLOW = Flow(sums, sampled_objective)
estimate = partial(estimate_flow, FLOW)
