"""activation_entropy: LUQ's score of a layer, the entropy of its output tokens, times weights and relative error.

The vectors that leave a block, one for each token (or position of a feature map), are sorted into K = 100 clusters by
K-means. With p_c the share of the vectors in cluster c,

    H = -sum_c p_c log2 p_c   bits            loss = H(block) * (number of weights) * ||dW||^2 / ||W||^2

LUQ (layer-wise ultra-low bit quantization of multimodal language models) gives the blocks of lowest entropy the fewest bits.
It ranks whole blocks by H alone, whatever their size, so that what a byte buys follows H here too.

LUQ does not say how the vectors are scaled, and clusters depend on it: here each vector is brought to length one, as the
norm that follows would see it, and each of its components to deviation one. Units before the first block take the entropy
of what enters it, units after the last block that of what leaves it; LUQ leaves both out. Where there are fewer than 800
vectors there are fewer clusters, one for eight vectors; of more than 4096 as many are taken, evenly spaced. The clusters are
found once, for all batches; the standard error is that of the shares in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from ..blocks import blocks, watch_blocks
from ..calibration import Part
from ..changes import weight_damage
from ..estimate import Estimate, jackknife_estimate
from ..network import Network, run
from ..report import Floats
from ..study import Study

CLUSTERS = 100
VECTORS_EACH = 8  # at least, on average
MOST_VECTORS = 4096
ROUNDS = 20


def estimate(study: Study) -> Estimate:
    """H times weights times relative error for every unit and format, standard errors from leaving out batches; one step a
    batch, which is quick once the clusters are found.

    Raises ValueError when the network has no blocks.
    """
    units, part = study.units, study.data
    held = blocks(units)
    if not held:
        raise ValueError("activation_entropy compares the blocks of a network and this one has none; use output_error")

    @cache
    def whole() -> Floats:
        return cluster_counts(study.network, part, tuple(held), study.seed)

    def counts(index: int) -> Floats:
        return np.asarray(whole()[index])

    sums = []
    for index in range(len(part.batches)):
        study.progress("estimate", index, len(part.batches))
        sums.append(study.steps(f"batch {index}", partial(counts, index)))
    site = np.zeros(len(units), dtype=np.int64)
    first = min(members[0] for members in held.values())
    for number, members in enumerate(held.values()):
        site[members] = number + 1
    for u, unit in enumerate(units):
        if unit.layer is None and u > first:
            site[u] = len(held)
    damage = weight_damage(study)
    study.progress("estimate", len(part.batches), len(part.batches))
    outside = sum(unit.layer is None for unit in units)
    note = f"{outside} of {len(units)} units are in no block and take the entropy of what enters the first or leaves the last"
    quantity = "bits of entropy times weights times relative error"
    return jackknife_estimate(sums, lambda total: entropy(total)[site, None] * damage, quantity, (note,) if outside else ())


def entropy(counts: Floats) -> Floats:
    """-sum p log2 p over the last axis, p the shares of the counts.

    >>> entropy(np.array([25.0, 25.0, 25.0, 25.0])).item()
    2.0
    """
    total = counts.sum(axis=-1, keepdims=True)
    p = np.divide(counts, total, out=np.zeros_like(counts, dtype=np.float64), where=total > 0)
    terms = p * np.log2(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(0.0 - terms.sum(axis=-1))


@torch.no_grad()
def cluster_counts(network: Network, part: Part, paths: Sequence[str], seed: int) -> Floats:
    """How many vectors of each batch lie in each cluster of what enters the first of the blocks `paths`, and of what leaves
    each: (batches, 1 + blocks, clusters)."""
    each = -(-MOST_VECTORS // len(part.batches))
    seen: list[list[Tensor]] = [[] for _ in range(1 + len(paths))]
    for batch in part.batches:
        here: dict[int, list[Tensor]] = {}

        def visit(path: str, received: Tensor, given: Tensor, here: dict[int, list[Tensor]] = here) -> None:
            if path == paths[0]:
                here.setdefault(0, []).append(received)
            here.setdefault(1 + paths.index(path), []).append(given)

        with watch_blocks(network, batch, paths, visit):
            run(network, batch)
        for number, rows in here.items():
            whole = torch.cat(rows)
            spaced = torch.linspace(0, len(whole) - 1, min(each, len(whole))).long()
            seen[number].append(whole[spaced.to(whole.device)].cpu())  # clusters are found on the CPU, the same for all devices
    counts = np.zeros((len(part.batches), len(seen), CLUSTERS))
    for number, pieces in enumerate(seen):
        vectors = normalised(torch.cat(pieces))
        clusters = min(CLUSTERS, max(2, len(vectors) // VECTORS_EACH))
        labels = kmeans(vectors, clusters, torch.Generator().manual_seed(seed))
        for index, mine in enumerate(torch.split(labels, [len(piece) for piece in pieces])):
            counts[index, number] = torch.bincount(mine, minlength=CLUSTERS).numpy()
    return counts


def normalised(vectors: Tensor) -> Tensor:
    """`vectors` (R, width), each divided by its length, then each component by its deviation over all of them."""
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    centred = unit - unit.mean(0)
    deviation = centred.square().mean(0).sqrt()
    return centred / torch.where(deviation > 0, deviation, 1.0)


def kmeans(vectors: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """The cluster of each of the `vectors` (R, width): K-means from k-means++ starting points, at most ROUNDS rounds."""
    centres = vectors[_plus_plus(vectors, clusters, generator)]
    labels = torch.cdist(vectors, centres).argmin(1)
    for _ in range(ROUNDS):
        members = torch.bincount(labels, minlength=clusters)
        means = torch.zeros_like(centres).index_add_(0, labels, vectors) / members.clamp(min=1)[:, None]
        centres = torch.where(members[:, None] > 0, means, centres)
        following = torch.cdist(vectors, centres).argmin(1)
        if torch.equal(following, labels):
            break
        labels = following
    return labels


def _plus_plus(vectors: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Starting points: each further one is drawn with its squared distance to the nearest that is there already."""
    chosen = [int(torch.randint(len(vectors), (1,), generator=generator))]
    nearest = (vectors - vectors[chosen[0]]).square().sum(1)
    for _ in range(clusters - 1):
        weights = nearest if bool(nearest.any()) else torch.ones_like(nearest)  # all are the same: any will do
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        nearest = torch.minimum(nearest, (vectors - vectors[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)
