"""empirical_fisher: kl_fisher with the labels of the data in place of random directions.

    1/(2N) sum (g^T dW x)^2,  g the gradient of the log-likelihood of the labels that the data has

in the two forms of `kl_fisher.py`. It is what most programs call Fisher (it falls out of a training step), but it is not the
second-order term of anything: where a label surprises the model its gradient is large though the curvature is not, and where
the model fits its data the gradient vanishes though the curvature does not. Models without labels (see `task_objective`) get
exactly kl_fisher's estimate.
"""

from __future__ import annotations

from functools import partial

from ..flow import Flow, estimate_flow
from ..network import task_objective
from .kl_fisher import sums

FLOW = Flow(sums, task_objective, quantity="half the squared slope of the task loss, a prediction")
estimate = partial(estimate_flow, FLOW)
