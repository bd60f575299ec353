"""Choice problems of the sizes of real models, for `solvers.py`; every number follows from a seed.

`projections`  a row a linear layer of LLaMA-3.1-8B (224), a column a trellis code of 1.5 to 5 bits (15), as in Q-Palette
`layers`       matrices of all sizes, losses that fall about fourfold a bit, formats of 2 to 8 bits
`experts`      the expert matrices of DeepSeek-V3: 58 layers x 256 experts x 3, all of 7168 x 2048 weights
`groups`       blocks of 128 columns and 16 to 128 rows of some matrix

Costs are bytes. Where there are two resources the second is nanoseconds: the time to read the bytes of a matrix once, half as
long again where the width is no power of two and codes must be shifted together, and within a tenth of that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitplan.solvers import SOLVERS, ChoiceProblem

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# LLaMA-3.1-8B: weights of each linear layer of one of 32 blocks, and Q-Palette's mean coefficient of its loss.
BLOCKS = 32
PROJECTIONS = {
    "self_attn.q_proj": (4096 * 4096, 0.0125),
    "self_attn.k_proj": (1024 * 4096, 0.0069),
    "self_attn.v_proj": (1024 * 4096, 0.0317),
    "self_attn.o_proj": (4096 * 4096, 0.0240),
    "mlp.gate_proj": (14336 * 4096, 0.0260),
    "mlp.up_proj": (14336 * 4096, 0.0386),
    "mlp.down_proj": (4096 * 14336, 0.1163),
}
# Q-Palette (arXiv 2509.20214): relative squared error of trellis codes at 1.5, 1.75, ..., 5 bits; every other one is half a
# matrix at one rate and half at the next.
TRELLIS = [.140339, .105689, .071013, .053663, .036314, .027617, .018913, .014547, .010177, .008040, .005901, .004143, .003027,
           .002194, .001616]  # fmt: skip
TRELLIS_BITS = [1.5 + step / 4 for step in range(15)]
EXPERTS, EXPERT_WEIGHTS = 58 * 256 * 3, 7168 * 2048
BITS = {6: [2, 3, 4, 5, 6, 8], 8: [2, 2.5, 3, 3.5, 4, 5, 6, 8]}
SCALE_BITS = 0.25  # a weight: two numbers of 16 bits for 128 weights
BYTES_A_NANOSECOND = 3350.0  # one accelerator's memory


@dataclass(frozen=True)
class Workload:
    """`items` of a `family` with `options` each, under `resources` limits (bytes; bytes and nanoseconds)."""

    family: str
    items: int
    options: int
    resources: int = 1

    @property
    def pairs(self) -> int:
        return self.items * self.options

    @property
    def name(self) -> str:
        return f"{self.family} {self.items:,} x {self.options}{', two limits' if self.resources > 1 else ''}"

    def problem(self, budget: int, seed: int, table: Path | None = None) -> ChoiceProblem:
        """The tables, which depend on `seed` only, under the limits that `seed` draws for the number `budget`.

        The limit of bytes lies between 5 and 80 % of the way from the smallest to the largest total. Where there are two limits,
        that multiplier of the bytes is divided between both at random; what the choice of least priced loss then spends, less
        up to a thousandth, are the limits. So both bind, and the choice itself does not fit.
        """
        loss, size, bits = self._tables(np.random.default_rng([seed, self.items, self.options]), table)
        cost = np.rint(size[:, None] * bits / 8).astype(np.int64)[None]
        rng = np.random.default_rng([seed, self.items, self.options, budget])
        allowed = np.ones(loss.shape, dtype=np.bool_)
        one = ChoiceProblem(loss, cost, _between(cost, rng.uniform(0.05, 0.8)), allowed)
        if self.resources == 1:
            return one
        both = np.concatenate([cost, self._nanoseconds(cost, bits, seed)])
        relaxed = SOLVERS["hull"](one)
        assert relaxed.choice is not None
        assert relaxed.certificate is not None
        price = float(relaxed.certificate.multipliers[0]) / relaxed.certificate.loss_scale
        items, share = np.arange(self.items), rng.uniform(0.2, 0.8)
        spent = both[:, items, relaxed.choice].sum(axis=1)
        prices = price * np.array([share, (1 - share) * spent[0] / spent[1]])
        priced = (loss + np.tensordot(prices, both, 1)).argmin(axis=1)
        limit = both[:, items, priced].sum(axis=1) * (1 - rng.uniform(0, 1e-3, 2))
        return ChoiceProblem(loss, both, limit.astype(np.int64), allowed)

    def _tables(self, rng: np.random.Generator, table: Path | None) -> tuple[Floats, Ints, Floats]:
        """Losses (n, m), weights an item (n,), stored bits a weight (m,)."""
        if self.family == "projections":
            return _projections(rng, table)
        bits = np.array(BITS[self.options], dtype=np.float64)
        n = self.items
        if self.family == "layers":
            size = np.exp(rng.uniform(np.log(2e5), np.log(6e6), n)).astype(np.int64) // 128 * 128
            importance = np.exp(rng.normal(0, 1.5, n)) * size * 1e-9
        elif self.family == "experts":
            # How often an expert is asked differs a lot between experts; its three matrices share that.
            size = np.full(n, EXPERT_WEIGHTS)
            asked = np.repeat(rng.lognormal(0, 1.2, -(-n // 3)), 3)[:n]
            importance = 1e-5 * asked / asked.mean() * np.exp(rng.normal(0, 0.5, n))
        else:
            size = 128 * rng.choice(np.array([16, 32, 64, 128]), n)
            importance = 1e-9 * size * np.exp(rng.normal(0, 1.0, n))
        decay = 2.0 ** (-rng.uniform(1.7, 2.1, (n, 1)) * bits)
        loss = importance[:, None] * decay * np.exp(rng.normal(0, 0.15, (n, self.options)))
        return loss, size, bits + SCALE_BITS

    def _nanoseconds(self, cost: Ints, bits: Floats, seed: int) -> Ints:
        rng = np.random.default_rng([seed, self.items, self.options, 2**20])
        shifted = np.where(np.log2(bits - SCALE_BITS) % 1 == 0, 1.0, 1.5)
        nanoseconds: Floats = cost / BYTES_A_NANOSECOND * shifted * rng.uniform(0.9, 1.1, (self.items, 1))
        return np.asarray(np.rint(nanoseconds), dtype=np.int64)


def _between(cost: Ints, share: float) -> Ints:
    least, most = cost.min(axis=2).sum(axis=1), cost.max(axis=2).sum(axis=1)
    limit: Ints = least + (share * (most - least)).astype(np.int64)
    return limit


def _projections(rng: np.random.Generator, table: Path | None) -> tuple[Floats, Ints, Floats]:
    """Loss = coefficient x relative squared error. From Q-Palette's own table where there is one, else of its size and spread."""
    size = np.tile([weights for weights, _ in PROJECTIONS.values()], BLOCKS)
    if table is None:
        means = np.tile([mean for _, mean in PROJECTIONS.values()], BLOCKS)
        coefficient = means * rng.lognormal(-0.18, 0.6, len(means))  # of mean one
        coefficient[13] = 2.1  # one matrix above all: down_proj of block 1
        error = np.array(TRELLIS)
    else:
        document = json.loads(table.read_text())
        named = document["loss_coefficient"]
        coefficient = np.array([named[f"{block}_{name}"] for block in range(BLOCKS) for name in PROJECTIONS])
        keys = ["tcq_{0}_none_0.9" if step % 2 == 0 else "tcomb_{0}_{1}_0.5_none_0.9" for step in range(15)]
        error = np.array([document["distortion"][key.format(3 + k // 2, 4 + k // 2)] for k, key in enumerate(keys)])
    return coefficient[:, None] * error, size.astype(np.int64), np.array(TRELLIS_BITS)
