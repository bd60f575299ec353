"""kl_fisher: the second-order estimate of the divergence that storing one unit in a format causes in the model's output.

Let L = sum of c_s . output_s over all predictions s, with random directions c_s whose second moment is the Fisher information
of the output (`network.py`), x_t the input of a unit at row t, g_t = dL/d(unit's output at t), dW = W_format - W. To second
order the divergence of the model's output is

    causal language models    1/(2N) sum_t (g_t^T dW x_t)^2               nats per token
    one output an example     1/(2N) sum_examples (sum_t g_t^T dW x_t)^2  nats (or cosine distance) per example

with N the number of predictions: half the Fisher information of the output along dW. The first form neglects the covariance
between positions of a sequence. Uses of a tied weight and the matrices of an expert are summed before squaring. For models
without a softmax head, which give a unit vector u, it is half the squared length of the change of u, the cosine distance.

All units and formats come from one forward and one backward pass a batch; weights need no gradient, so the backward pass
costs as much as the forward one. The data must not be what the weights were rounded on: GPTQ fits those tokens, and the
estimate would flatter it.
"""

from __future__ import annotations

from functools import partial

from ..flow import Flow, Passage, estimate_flow
from ..network import sampled_objective
from ..report import Floats
from ..slopes import example_slopes, token_slopes


def sums(passage: Passage) -> Floats:
    """Half the summed squares of one batch, (units, formats)."""
    slopes = token_slopes if passage.network.inventory.outputs == "tokens" else example_slopes
    return slopes(passage) / 2


FLOW = Flow(sums, sampled_objective)
estimate = partial(estimate_flow, FLOW)
