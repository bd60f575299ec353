"""cosine: the cosine distance between the outputs of the untouched and of the changed network, measured.

    loss[u, f] = mean over predictions of 1 - y . y_uf / (|y| |y_uf|)

y is the vector of logits of a token or an example, or the pooled vector, for which this is the divergence itself. Cosine
similarity of logits is a common score in toolkits (NNCF, Quark). Unlike a divergence it is not blind to a shift of all
logits by one number, which changes no prediction, and weighs logits by their size, not by their probability.
"""

from __future__ import annotations

from torch.nn import functional

from ...kernels.float64 import sum64
from ..estimate import Estimate, ratio_estimate
from ..measured import Trial, counted, make_bench, measure_alone, prediction_counts
from ..study import Study


def estimate(study: Study) -> Estimate:
    """The measured cosine distance for every unit and format."""
    tables = measure_alone(make_bench(study), summed_distance)
    what = "token" if study.network.inventory.outputs == "tokens" else "example"
    return ratio_estimate(tables, prediction_counts(study.network, study.data), f"cosine distance of the output per {what}")


def summed_distance(trial: Trial) -> float:
    """sum of 1 - cosine, as half the squared distance of unit vectors: exact for small ones."""
    before, after = (functional.normalize(output.flatten(0, -2), dim=-1) for output in (trial.reference, trial.output))
    each = sum64((before - after).square(), -1) / 2
    return float(counted(trial.network, each, trial.batch).sum())
