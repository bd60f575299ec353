"""expert_error: MC-MoE's cost of an expert, phi^alpha rho^beta eps^gamma (Mixture Compressor, arXiv 2410.06270).

For expert e of a block, in format f:

    phi = n_e / sum n          its share of the block's (token, slot) pairs
    rho = w_e / sum w          its share of the block's router probabilities, taken before the top k are scaled up to one
    eps = sum over batches of || Y_f - Y ||_F
                               Y the output of the whole block, one row a token; only e is in format f, the router is the
                               untouched one. A norm, not its square: of what one batch holds, then added over batches

The exponents (alpha, beta, gamma) are (1, 1.5, 1) in the released code, with which all its 288 published allocations come
out, and (1, 1, 2) in the paper; the first are used. A norm added over batches depends on the size of a batch, so only the
ratios inside a block mean anything: the method has no term that compares blocks, its budgets are per block, and numbers
of different blocks, though they stand in one table here, should not be traded. eps is divided by the number of batches,
which changes no ratio.

Units that are no experts take phi = rho = 1 and for eps the norm of the change of their own output (ours: MC-MoE leaves
attention at 4 bits). An expert that no token reached counts as reached by one: n and w as in `routing.py`, eps as one
token costs the other experts of its block on average (ours: by the released code such an expert costs nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.float64 import as_float64
from ..changes import squared_output_error
from ..estimate import Estimate, empty_table, jackknife_estimate, measured_pairs
from ..experts import Experts
from ..measured import stored
from ..network import Batch, run
from ..probe import Rows, Use, watch_inputs
from ..report import Floats
from ..routing import (
    Column,
    as_routing,
    at_least_once,
    column_of,
    columns_of,
    missed_note,
    require_mass,
    tally,
    watch_routing,
)
from ..study import Study
from ..units import Unit

Exponents = tuple[float, float, float]
AS_RELEASED: Exponents = (1.0, 1.5, 1.0)
AS_PRINTED: Exponents = (1.0, 1.0, 2.0)


def estimate(study: Study) -> Estimate:
    """MC-MoE's cost for every unit and format.

    Raises ValueError when a block's router cannot be found.
    """
    units, part, columns = study.units, study.data, columns_of(study.network.module)
    cells, width = len(units) * len(study.formats), len(columns)
    sums = []
    for index, batch in enumerate(part.batches):
        study.progress("estimate", index, len(part.batches))
        seen = study.steps(f"batch {index}", partial(_one_batch, study, batch))
        sums.append(np.append(seen, 1.0))
    study.progress("estimate", len(part.batches), len(part.batches))

    def table(total: Floats) -> Floats:
        errors = total[:cells].reshape(len(units), len(study.formats)) / total[-1]
        counts, mass = total[cells : cells + width], total[cells + width : cells + 2 * width]
        return _losses(units, columns, errors, counts, mass, total[-1])

    routing = as_routing(study.network, [seen[cells:-1].reshape(2, width) for seen in sums], part.batches)
    require_mass(routing)
    notes = (
        "the costs of experts are comparable inside a block of experts only, and not with those of other units",
        *missed_note(units, routing.unit_counts(units)),
    )
    return jackknife_estimate(sums, table, "share^1 mass^1.5 error^1 of an expert, or error of a unit's own output", notes)


def costs(counts: Floats, mass: Floats, errors: Floats, exponents: Exponents = AS_RELEASED) -> Floats:
    """phi^alpha rho^beta eps^gamma of the experts of one block: counts and mass (experts,), errors (experts, formats)."""
    alpha, beta, gamma = exponents
    share = (counts / counts.sum()) ** alpha * (mass / mass.sum()) ** beta
    found: Floats = share[:, None] * errors**gamma
    return found


def _losses(
    units: Sequence[Unit], columns: Sequence[Column], errors: Floats, counts: Floats, mass: Floats, batches: float
) -> Floats:
    """`costs` block by block; units that are no experts have share 1."""
    clamped, weighed = at_least_once(columns, counts, mass)
    result = errors ** AS_RELEASED[2]
    place = {column: c for c, column in enumerate(columns)}
    for block in dict.fromkeys(path for path, _ in columns):
        inside = [c for c, (path, _) in enumerate(columns) if path == block]
        members = [u for u, unit in enumerate(units) if unit.kind == "expert" and column_of(unit)[0] == block]
        here = np.full((len(inside), errors.shape[1]), np.nan)  # experts that are no units stay NaN and are not looked at
        rows = [place[column_of(units[u])] - inside[0] for u in members]
        here[rows] = errors[members]
        reached = [row for row in rows if counts[inside[row]] > 0]
        for row in set(rows) - set(reached):
            if reached:
                one_token = here[reached] / np.sqrt(counts[inside][reached] * batches)[:, None]
                here[row] = np.where(np.isnan(here[row]), np.nan, one_token.mean(axis=0))
        result[members] = costs(clamped[inside], weighed[inside], here)[rows]
    return result


def _one_batch(study: Study, batch: Batch) -> Floats:
    """eps (units x formats) of one batch, then the counts and the mass of all experts, in one row."""
    network, units, columns = study.network, study.units, columns_of(study.network.module)
    position = {unit.name: u for u, unit in enumerate(units)}
    place = {column: c for c, column in enumerate(columns)}
    squares, routed = empty_table(units, study.formats), np.zeros((2, len(columns)))

    def dense(use: Use, rows: Rows) -> None:
        weight = network.module.get_parameter(f"{use.module}.weight").flatten(1)
        for f, fmt in measured_pairs(use.unit, study.formats):
            made = study.renderings(use.unit, fmt)[use.matrix]
            squares[position[use.unit.name], f] += squared_output_error(made, weight, rows)

    def sparse(path: str, experts: Experts, hidden: Tensor, chosen: Tensor, weights: Tensor, logits: Tensor | None) -> None:
        first, number = place[path, 0], len(experts.experts)
        routed[:, first : first + number] += tally(chosen, logits, number)
        for unit in units:
            if unit.kind == "expert" and column_of(unit)[0] == path:
                u = position[unit.name]
                squares[u] += _squared_change(study, unit, experts, hidden, chosen, weights)

    others = [unit for unit in units if unit.kind != "expert"]
    with torch.no_grad(), watch_inputs(network, batch, others, dense), watch_routing(network, batch, sparse):
        run(network, batch)
    return np.concatenate([np.sqrt(squares).flatten(), routed.flatten()])


def _squared_change(study: Study, unit: Unit, experts: Experts, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Floats:
    """||Y_f - Y||_F^2 of the block for each format of one expert: only the tokens sent to it change, by its part of Y alone."""
    result: Floats = empty_table([unit], study.formats)[0]
    sent = chosen.eq(unit.expert)  # type: ignore[arg-type]
    mine = sent.any(dim=1)
    alone = torch.where(sent, chosen, -1)[mine]  # -1 is no expert: the others add nothing
    before = experts.forward(hidden[mine], alone, weights[mine])
    for f, fmt in measured_pairs(unit, study.formats):
        with stored(study.network, study.renderings, [(unit, fmt)]):
            after = experts.forward(hidden[mine], alone, weights[mine])
        result[f] = float(as_float64(after - before).square().sum())
    return result
