"""hessian_trace: average curvature times squared change, with the exact Hessian of the loss (HAWQ-V2, 2020).

    loss[u, f] = 1/2 * (Tr H_u / n_u) * ||dW||^2

H_u is the Hessian of the loss per prediction by the n_u weights of unit u (an expert's two matrices are one block, the uses of
a tied weight one weight). This is the second-order term of Taylor's series averaged over errors without a preferred direction:
the gradient is taken to be zero, and the error to lie as much along one eigenvector as along any other. HAWQ drops the 1/2,
which is kept here so that the number is nats. The trace is Hutchinson's, with Rademacher probes v in {-1, 1}^n:

    Tr H_u = E v_u . (H v)_u,   variance of a probe 2 sum_{i != j in u} H_ij^2 + sum_{i in u, j not in u} H_ij^2

One probe over all weights serves every unit; the second term is what that costs. Hv is exact: the gradient is differentiated
once more (PyTorch's fused CPU attention cannot be, so attention is unfused meanwhile). Probes are dealt to the batches, 16 or
more in all and at least 2 a batch; standard errors over batches therefore hold the scatter of probes as well as that of data.

The loss is the task loss of the data's labels. Where there are none, `task_objective`'s random direction would not do:
its curvature is not that of a loss which the model minimises. The divergence from the model's
own frozen output takes its place; its gradient is zero and its Hessian the Fisher information exactly. The Hessian of the task
loss is close to that only as far as the labels are what the model itself would say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...kernels.float64 import sum64
from ..changes import squared_changes
from ..estimate import Estimate, ratio_estimate
from ..flow import scalar_of
from ..network import CPU, Batch, Network, run, task_objective
from ..report import Floats
from ..study import Study
from ..task_loss import has_labels, labelled, part_has_labels
from ..weight_gradients import differentiable

PROBES = 16  # over the whole part, at least


def estimate(study: Study) -> Estimate:
    """The loss table with standard errors over batches; one step a batch."""
    network, part, units = study.network, study.data, study.units
    probes = max(2, -(-PROBES // len(part.batches)))
    traces = []  # a table (units, probes) a batch
    for index, batch in enumerate(part.batches):
        study.progress("estimate", index, len(part.batches))
        labels = part.classes(index)
        traces.append(study.steps(f"batch {index}", partial(batch_traces, network, batch, labels, probes, study.seed + index)))
    study.progress("estimate", len(part.batches), len(part.batches))
    counts = [labelled(network, batch) for batch in part.batches]
    sizes = np.array([[unit.parameters] for unit in units], dtype=np.float64)
    curvature = squared_changes(network, study.renderings, units, study.formats) / (2 * sizes)
    sums = [table.mean(axis=1, keepdims=True) * curvature for table in traces]
    own = part_has_labels(network, part)
    quantity = f"second-order rise of the {'task loss' if own else 'divergence'}, {network.quantity}"
    return ratio_estimate(sums, counts, quantity, _notes(np.stack(traces), own))


def batch_traces(network: Network, batch: Batch, labels: Tensor | None, probes: int, seed: int) -> Floats:
    """v_u . (H v)_u for H the Hessian of the summed loss of `batch`, (units, probes)."""
    generator = torch.Generator().manual_seed(seed)
    with differentiable(network) as by_unit, sdpa_kernel(SDPBackend.MATH):
        weights = [weight for mine in by_unit for weight in mine]
        loss = scalar_of(summed_loss, network, run(network, batch), batch, labels, seed)
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)

        def multiply(vectors: Sequence[Tensor]) -> list[Tensor]:
            pairs = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g is not None and g.requires_grad]
            if not pairs:  # a loss that is linear in every weight
                return [torch.zeros_like(weight) for weight in weights]
            directional = torch.stack([(g * v).sum() for g, v in pairs]).sum()
            found = torch.autograd.grad(directional, weights, retain_graph=True, allow_unused=True)
            return [torch.zeros_like(w) if h is None else h for w, h in zip(weights, found, strict=True)]

        by_matrix = hutchinson(multiply, [weight.shape for weight in weights], probes, generator, network.device)
    owner = [u for u, mine in enumerate(by_unit) for _ in mine]
    table = np.zeros((len(by_unit), probes))
    np.add.at(table, owner, by_matrix.T)
    return table


def hutchinson(
    multiply: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    shapes: Sequence[torch.Size],
    probes: int,
    generator: torch.Generator,
    device: torch.device = CPU,
) -> Floats:
    """Unbiased estimates of the traces of the diagonal blocks of a symmetric matrix, (probes, blocks).

    `multiply` gives the product of the matrix with a vector, both as one tensor a block, of `shapes`, on `device`.
    """
    found = np.zeros((probes, len(shapes)))
    for k in range(probes):
        vectors = [torch.randint(0, 2, shape, generator=generator).to(device).float() * 2 - 1 for shape in shapes]
        products = multiply(vectors)
        found[k] = [float(sum64(v * h)) for v, h in zip(vectors, products, strict=True)]
    return found


def summed_loss(network: Network, output: Tensor, batch: Batch, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """The task loss of `batch`, summed over its labels, or the divergence of `output` from a frozen copy of itself.

    For distributions the latter lacks the entropy of the copy, a constant.
    """
    if has_labels(network, output, labels):
        return -task_objective(network, output, batch, labels, generator)
    if network.inventory.outputs == "pooled":
        return (output - output.detach()).square().sum() / 2
    logits = output.flatten(0, -2)
    each = -(logits.detach().softmax(-1) * logits.log_softmax(-1)).sum(-1)
    if network.inventory.outputs == "tokens" and "attention_mask" in batch:
        each = each * batch["attention_mask"].flatten()
    return each.sum()


def _notes(traces: Floats, own: bool) -> tuple[str, ...]:
    """What the probes say of themselves; `traces` (batches, units, probes)."""
    batches, _, probes = traces.shape
    total = traces.mean(axis=2).sum(axis=0)
    scatter = np.sqrt(traces.var(axis=2, ddof=1).sum(axis=0) / probes)
    reached = total > 0
    relative = f"{np.median(scatter[reached] / total[reached]):.0%}" if reached.any() else "unknown"
    notes = [
        f"{batches * probes} Hutchinson probes; their scatter alone gives the trace of a unit a relative standard error of "
        f"{relative} in the median"
    ]
    if (total < 0).any():
        notes.append(f"the trace of {int((total < 0).sum())} of {len(total)} units came out negative and is taken as zero")
    if not own:
        notes.append("there are no labels: the curvature is that of the divergence from the model's own output")
    return tuple(notes)
