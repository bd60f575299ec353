"""divergence: the truth for single units. Each unit is put in each format, alone, and the output is compared.

The judge of the other metrics: one forward pass for each unit, format and batch, so it is slow. It measures KL(p || q) of
the model's distributions, or cosine distance of pooled vectors; see `network.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration import Part
from ..estimate import Estimate, ratio_estimate
from ..measured import make_bench, measure_alone, prediction_counts, summed_divergence
from ..network import Network
from ..progress import Progress, Steps
from ..render import Renderings


def estimate(
    network: Network,
    renderings: Renderings,
    part: Part,
    formats: Sequence[str],
    seed: int,
    steps: Steps,
    progress: Progress,
) -> Estimate:
    """The measured divergence for every unit and format, with standard errors over batches."""
    bench = make_bench(network, renderings, part)
    tables = measure_alone(bench, summed_divergence, formats, steps, progress)
    return ratio_estimate(tables, prediction_counts(network, part), network.quantity)
