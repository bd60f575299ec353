"""What the errors of other units add to each unit's loss, around a plan.

A loss table prices every unit alone. In a plan P the others are rounded too. With G the gradient of the mean divergence at the
weights of P, W_f a unit's weights in format f and W its own, the products of its error with those of all others are, to second
order,

    products[u, f] = <G_u, W_u,f - W_u> - (2 loss[u, f] where f is the format of u in P)

taking errors of one unit in two formats as independent. To second order P loses

    sum over u of  loss[u, P(u)] + 1/2 products[u, P(u)]

and moving one unit changes that by the difference of loss + products. One forward and one whole backward pass a batch serve all
units and formats: the sum is of signed numbers, so that no square of a row is needed. As an objective, products overfit the data
they were taken on; `benchmarks/around.py` measures what a share of them is worth. `joint.py` gives the loss of a plan without
products of single units.

In memory at a time: the weights twice, one gradient of each, and the untouched outputs of all batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..kernels.float64 import sum64
from .estimate import empty_table, measured_pairs
from .measured import make_bench, stored
from .network import divergence, run
from .render import rendered_slices, unit_weights
from .report import Floats
from .study import Study
from .weight_gradients import differentiable


@dataclass(frozen=True, eq=False)
class Surroundings:
    """`products` (units, formats) in the units of the divergence, zero for units that the plan leaves in their own format, NaN
    where a unit does not admit a format; `measured` what the plan loses on the data they were taken on."""

    products: Floats
    measured: float


def products_around(study: Study, assignment: Mapping[str, str], loss: Floats) -> Surroundings:
    """The products around the plan `assignment` (unit -> format), `loss` (units, formats) being what units lose alone."""
    network, part, units = study.network, study.data, study.units
    references = make_bench(study).references
    pairs = [(unit, assignment[unit.name]) for unit in units if assignment.get(unit.name, unit.native) != unit.native]
    chosen = {unit.name for unit, _ in pairs}
    lost, count = 0.0, 0
    with stored(network, study.renderings, pairs), differentiable(network) as by_unit:
        named = zip(units, by_unit, strict=True)
        mine = {unit.name: weights for unit, weights in named if unit.name in chosen}
        gradients = {name: [torch.zeros_like(weight) for weight in weights] for name, weights in mine.items()}
        totals = [total for totals in gradients.values() for total in totals]
        for index, (batch, reference) in enumerate(zip(part.batches, references, strict=True)):
            study.progress("products around the plan", index, len(part.batches))
            each = divergence(network, reference, run(network, batch), batch)
            lost, count = lost + float(each.detach().sum()), count + len(each)
            if not mine:
                continue
            found = torch.autograd.grad(each.sum(), [w for weights in mine.values() for w in weights], allow_unused=True)
            for total, gradient in zip(totals, found, strict=True):
                if gradient is not None:  # an expert that no token reached has none
                    total += gradient
    study.progress("products around the plan", len(part.batches), len(part.batches))
    products = empty_table(units, study.formats)
    for u, unit in enumerate(units):
        if unit.name not in chosen:
            continue
        weights = unit_weights(network.module, unit)
        for f, fmt in measured_pairs(unit, study.formats):
            matrices = zip(gradients[unit.name], weights, study.renderings(unit, fmt), strict=True)
            moved = sum(
                float(sum64(gradient.flatten(1)[rows].T * delta))
                for gradient, weight, made in matrices
                for rows, delta in rendered_slices(made, weight)
            )
            products[u, f] = moved / count - (2 * loss[u, f] if fmt == assignment[unit.name] else 0.0)
    return Surroundings(products, lost / count)
