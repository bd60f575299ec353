"""relative_error: the share of a unit's weight energy that its format loses, D = ||W_format - W||^2 / ||W||^2. Needs no data.

D is the common measure by which methods that only rank units become losses: an importance a_u, in whatever its method
counts, makes a_u D_u(format). To first order that is how a loss that is quadratic in the weights grows when noise of
relative power D is added to one unit and its rounding errors have no direction of their own (Q-Palette, arXiv 2509.20214,
calls it the linearity of the loss in D). Methods that rank units by the score alone, of whatever size they are, multiply
by the number of weights as well, so that what a byte buys follows the score.
"""

from __future__ import annotations

from ..changes import relative_errors
from ..estimate import Estimate
from ..study import Study


def estimate(study: Study) -> Estimate:
    """D for every unit and format; no sampling error."""
    return Estimate(relative_errors(study, study.progress), None, 0, "relative squared weight error")
