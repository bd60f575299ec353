"""divergence: the truth for single units. Each unit is put in each format, alone, and the output is compared.

The judge of the other metrics: one forward pass for each unit, format and batch, so it is slow. It measures KL(p || q) of
the model's distributions, or cosine distance of pooled vectors; see `network.py`.
"""

from __future__ import annotations

from ..estimate import Estimate, ratio_estimate
from ..measured import make_bench, measure_alone, prediction_counts, summed_divergence
from ..study import Study


def estimate(study: Study) -> Estimate:
    """The measured divergence for every unit and format, with standard errors over batches."""
    tables = measure_alone(make_bench(study), summed_divergence)
    return ratio_estimate(tables, prediction_counts(study.network, study.data), study.network.quantity)
