"""relevance: the share of the output's relevance that comes to a unit, times the noise that a format adds to its output.

Layer-wise relevance propagation (`lrp.py`) sends the relevance of each prediction back through the network. With R_r the
relevance at the output of a unit at row r,

    Omega_u = c_u / sum_v c_v,   c_u = mean over examples of sum_r ||R_r||_1      loss = Omega_u * NSR_u(format)

with NSR the noise to signal ratio of the unit's output (`noise_to_signal.py`). Relevance is conserved: its plain sum over a
whole layer is the same at every depth, so sizes are summed, and they are taken where the unit's own branch leaves it. An
expert's matrices and a tied weight's uses are added. The propagation rules are published; the score and its use as a weight
are our reading of LRP-QViT (arXiv 2401.11243), whose text gives neither in full. All predictions of an example are explained
at once. The rule for a + b depends on their sum, so the result is not exactly the mean of explaining them one by one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from ...kernels.float64 import as_float64
from ..estimate import Estimate, jackknife_estimate
from ..flow import Passage, Visit
from ..lrp import propagate
from ..network import Batch
from ..probe import Rows, Use
from ..report import Floats
from ..study import Study
from .noise_to_signal import noise_and_signal
from .noise_to_signal import ratio as noise_to_signal

KEPT = 5  # numbers of the account that a step keeps beside its sums


def estimate(study: Study) -> Estimate:
    """Omega times NSR for every unit and format, with standard errors over batches; one step a batch.

    Raises ValueError, naming operation and module, when the model has an operation without a rule.
    """
    part, shape = study.data, (3, len(study.units), len(study.formats))
    accounts, sums = [], []
    for index, batch in enumerate(part.batches):
        study.progress("estimate", index, len(part.batches))
        both = study.steps(f"batch {index}", partial(_one, study, batch))
        accounts.append(both[:KEPT])
        sums.append(both[KEPT:].reshape(shape))
    study.progress("estimate", len(part.batches), len(part.batches))
    note = _note(np.stack(accounts))
    return jackknife_estimate(sums, _weighted, "share of relevance times noise to signal", (note,))


def _one(study: Study, batch: Batch) -> Floats:
    """What the account says of one batch, and its sums of noise, signal and relevance, (3, units, formats)."""
    network, units = study.network, study.units
    position = {unit.name: u for u, unit in enumerate(units)}
    relevance = np.zeros(len(units))
    kept = np.zeros(KEPT)

    def drive(visit: Visit) -> None:
        def seen(use: Use, rows: Rows, r: Tensor) -> None:
            relevance[position[use.unit.name]] += float(as_float64(r).abs().sum())
            visit(use, rows, r)

        account = propagate(network, batch, units, seen)
        kept[:] = account.sent, account.arrived, account.lost, account.spread, account.worst

    noise, signal = noise_and_signal(Passage(network, study.renderings, units, study.formats, batch, drive))
    return np.concatenate([kept, np.stack([noise, signal, np.broadcast_to(relevance[:, None], noise.shape)]).ravel()])


def _weighted(sums: Floats) -> Floats:
    """Omega times NSR, (units, formats)."""
    return np.asarray(noise_to_signal(sums[:2]) * sums[2] / sums[2].sum(axis=0))


def _note(accounts: Floats) -> str:
    sent, arrived, lost, spread, _ = accounts.sum(axis=0)
    return (
        f"of the relevance sent {abs(arrived - sent) / sent:.1e} did not arrive at the inputs; one rule changed a sum by at most "
        f"{accounts[:, 4].max():.1e} of it, all together by {lost / sent:.1e}; {spread / sent:.1e} was at outputs to which "
        "nothing contributes and was spread by the weights alone"
    )
