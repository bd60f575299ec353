"""cross_entropy: the increase of the task's own loss with one unit in one format, measured.

    loss[u, f] = 1/N sum over predictions of log p(y) - log p_uf(y),    nats

y is the label that the data has: the next token of a causal language model, the class of a labelled image; N counts the
predictions that have one. This is the sensitivity of CalibTIP's integer programme (arXiv 2006.10518) without its detour
by 8-bit surroundings, and what AIMET's sensitivity pass measures. It is noisier than the divergence: a change that moves
probability to and fro costs nothing on average, so an increase may come out negative. Negative sums are set to zero and
counted in the notes (CalibTIP clamps at 1e-6, which makes ties).

Where there is no label, the expectation over labels drawn from the untouched model takes its place: the increase of the
cross entropy against its own distribution is exactly the divergence, which is then measured (for pooled vectors: the
cosine distance).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ...kernels.float64 import sum64
from ..estimate import Estimate, ratio_estimate
from ..measured import Trial, make_bench, measure_alone, prediction_counts, summed_divergence
from ..study import Study
from ..task_loss import has_labels, labelled

NONE = -100  # the label of a prediction that has none, torch's own convention


def estimate(study: Study) -> Estimate:
    """The measured increase of the task loss for every unit and format."""
    network, part, bench = study.network, study.data, make_bench(study)
    classes = part.classes(0)
    if not has_labels(network, bench.references[0], classes):
        tables = measure_alone(bench, summed_divergence)
        note = "the data has no labels: the cross entropy is that against the untouched model's own output, the divergence"
        return ratio_estimate(tables, prediction_counts(network, part), network.quantity, (note,))
    tables = measure_alone(bench, summed_increase)
    counts = [labelled(network, batch) for batch in part.batches]
    return ratio_estimate(tables, counts, f"increase of the cross entropy, {network.quantity}")


def summed_increase(trial: Trial) -> float:
    """sum of log p(y) - log p_changed(y); the difference is taken label by label, where both are of one size."""
    labels = _labels(trial)
    before, after = (
        functional.cross_entropy(output.flatten(0, -2), labels, reduction="none", ignore_index=NONE)
        for output in (trial.reference, trial.output)
    )
    return float(sum64(after - before))


def _labels(trial: Trial) -> Tensor:
    """The label of each prediction: its class, or the token that follows, NONE where none does or it is padding."""
    if trial.labels is not None and trial.network.inventory.outputs == "classes":
        return trial.labels
    follows = functional.pad(trial.batch["input_ids"][:, 1:], (0, 1), value=NONE)
    if "attention_mask" in trial.batch:
        follows = follows.masked_fill(functional.pad(trial.batch["attention_mask"][:, 1:], (0, 1)) == 0, NONE)
    return follows.flatten()
