"""content: MixDQ's two metrics for two groups of units, measured (MixDQ, ECCV 2024; groups and formulas from its code).

MixDQ quantizes a diffusion network that draws images from a text. Some units decide what is in the picture, the others
how well it is drawn, and one metric judges both badly:

    group      MixDQ: names containing        here                                                loss of one example
    content    "ff", "attn2" (cross           feed-forward roles (gate, up, gate_up, down,        1 - SSIM(y, y_uf)
               attention to the text)         expert) and names of cross attention
    quality    all others                     all others                                          |y_uf - y|^2 / |y|^2

y is the whole output of the network for an example: tokens by logits, logits, or the pooled vector. SSIM is taken over
one window as large as the output (MixDQ's window of 511 pixels is nearly its image), with the usual constants 0.01 and
0.03 of the output's range:

    SSIM = (2 m m' + c1) (2 cov + c2) / ((m^2 + m'^2 + c1) (v + v' + c2))

MixDQ maximises sums of SSIM and of SQNR in dB, -10 log10 of the ratio above; a ratio is taken here because losses of units
add up and dB do not. The two groups stand on different scales: MixDQ never compares them, it gives each a budget of its
own (`split_budget`), solves twice, and chooses among the splits by looking at the result. Mapping roles to groups is
ours: it was made for text-to-image networks and is a guess for any other model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ...kernels.float64 import as_float64, sum64
from ..estimate import Estimate, ratio_estimate
from ..measured import Trial, make_bench, measure_alone
from ..network import Batch, Network
from ..study import Study
from ..units import Unit

CONTENT_ROLES = ("gate", "up", "gate_up", "down", "expert")
CONTENT_NAMES = (".ff.", "attn2", "cross_attn", "crossattention", "encoder_attn", "encdecattention")


def estimate(study: Study) -> Estimate:
    """1 - SSIM of the output for units of content, noise to signal for the others."""
    tables = measure_alone(make_bench(study), summed_loss)
    units = study.units
    note = (
        f"{sum(map(is_content, units))} of {len(units)} units are judged by 1 - SSIM of the output and the others by noise to "
        "signal; the two do not stand on one scale, and MixDQ gives each group a budget of its own"
    )
    counts = [len(next(iter(batch.values()))) for batch in study.data.batches]
    return ratio_estimate(tables, counts, "1 - SSIM (content) or noise to signal (quality) per example", (note,))


def is_content(unit: Unit) -> bool:
    """Whether MixDQ would count `unit` among those that decide on content."""
    name = f"{unit.name}.".lower()
    return unit.role in CONTENT_ROLES or any(part in name for part in CONTENT_NAMES)


def summed_loss(trial: Trial) -> float:
    """The loss of the changed unit's group, summed over examples."""
    compare = dissimilarity if is_content(trial.changed[0]) else noise_to_signal
    pairs = zip(_maps(trial.network, trial.reference, trial.batch), _maps(trial.network, trial.output, trial.batch), strict=True)
    return sum(compare(before, after) for before, after in pairs)


def _maps(network: Network, output: Tensor, batch: Batch) -> Iterator[Tensor]:
    """The output of each example, padding left out."""
    for example, one in enumerate(output):
        masked = network.inventory.outputs == "tokens" and "attention_mask" in batch
        yield one[batch["attention_mask"][example].bool()] if masked else one


def dissimilarity(before: Tensor, after: Tensor) -> float:
    """1 - SSIM over the whole map; written as a sum of differences, so that small ones are exact."""
    x, y = as_float64(before).flatten(), as_float64(after).flatten()
    span = float(x.max() - x.min())
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_x, mean_y = float(x.mean()), float(y.mean())
    level, level_lost = mean_x**2 + mean_y**2 + c1, (mean_x - mean_y) ** 2
    spread = float(x.var(correction=0) + y.var(correction=0)) + c2
    lost = level_lost / level if level else 0.0
    return lost + (1 - lost) * (float((x - y).var(correction=0)) / spread if spread else 0.0)


def noise_to_signal(before: Tensor, after: Tensor) -> float:
    """sum (y_q - y)^2 / sum y^2; -10 log10 of it is the SQNR in dB."""
    signal = float(sum64(before.square()))
    noise = float((as_float64(after) - as_float64(before)).square().sum())
    return noise / signal if signal else float(noise > 0)


def split_budget(mean_bits: float, ratio: float, k: float) -> tuple[float, float]:
    """(quality, content): the mean bits of the two groups, k times as many for content, that together have `mean_bits`.

    `ratio` is the number of weights of content over that of quality.

    >>> [round(bits, 5) for bits in split_budget(5, 1.5, 0.46)]
    [7.39645, 3.40237]
    """
    quality = mean_bits * (1 + ratio) / (k * ratio + 1)
    return quality, k * quality


def candidate_splits(target: float, ratio: float) -> list[tuple[float, float]]:
    """The splits that MixDQ tries for weights: ten k, ten mean widths up to `target`; quality within 4 to 8 bits, content
    within 2 to 8."""
    tried = [
        split_budget(float(mean), ratio, float(k))
        for k in np.linspace(0.46, 1.36, 10)
        for mean in np.linspace(target - 0.3, target, 10)
    ]
    return [(quality, content) for quality, content in tried if 4 <= quality <= 8 and 2 <= content <= 8]
