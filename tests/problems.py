"""Choice problems with known answers, and random families: one library for all tests of solvers.

Published instances carry the optimum that their source prints; sources are named at each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bitplan.solvers import ChoiceProblem, Rule, balance, count, forbid, merge_tied

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Known:
    """A problem with one resource, its least loss to within `tolerance`, and, where the source states them, the bound that
    multipliers give and the only optimal choice."""

    name: str
    problem: ChoiceProblem
    loss: float
    tolerance: float = 1e-12
    bound: float | None = None
    choice: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.name


def make(loss: npt.ArrayLike, cost: npt.ArrayLike, *limit: int, allowed: npt.ArrayLike | None = None) -> ChoiceProblem:
    """A problem from tables (n, m), or costs (r, n, m); everything allowed unless said otherwise."""
    losses, costs = np.array(loss, dtype=np.float64), np.array(cost)
    mask = np.ones(losses.shape, dtype=np.bool_) if allowed is None else np.array(allowed, dtype=np.bool_)
    return ChoiceProblem(losses, costs.reshape(len(limit), *losses.shape), np.array(limit, dtype=np.int64), mask)


def padded(classes: list[list[tuple[int, float]]], limit: int) -> ChoiceProblem:
    """A problem from lists of (cost, loss), of any lengths."""
    width = max(len(options) for options in classes)
    loss, cost = np.zeros((len(classes), width)), np.zeros((len(classes), width), dtype=np.int64)
    allowed = np.zeros((len(classes), width), dtype=np.bool_)
    for item, options in enumerate(classes):
        for option, (spent, lost) in enumerate(options):
            cost[item, option], loss[item, option], allowed[item, option] = spent, lost, True
    return make(loss, cost, limit, allowed=allowed)


# --- A worked textbook instance: three classes of (cost, loss). Budgets 11, 13 and 15 need options off the convex hull.

WORKED_CLASSES: list[list[tuple[int, float]]] = [
    [(2, 9), (3, 4), (4, 1)],
    [(4, 5), (6, 3.2), (8, 0.5)],
    [(2, 2), (3, 1.5), (4, 0.2)],
]
_WORKED = {  # budget: (choice or None where two are optimal, loss, bound)
    8: ((0, 0, 0), 16, 16),
    9: ((1, 0, 0), 11, 11),
    10: ((2, 0, 0), 8, 8),
    11: ((2, 0, 1), 7.5, 6.875),
    12: (None, 6.2, 5.75),
    13: ((2, 1, 1), 5.7, 4.625),
    14: ((2, 2, 0), 3.5, 3.5),
    15: ((2, 2, 1), 3.0, 2.6),
    16: ((2, 2, 2), 1.7, 1.7),
}
WORKED_VERTICES = [(8, 16.0), (9, 11.0), (10, 8.0), (14, 3.5), (16, 1.7)]


def worked(limit: int) -> ChoiceProblem:
    return padded(WORKED_CLASSES, limit)


def _worked() -> Iterator[Known]:
    for limit, (choice, loss, bound) in _WORKED.items():
        yield Known(f"worked-{limit}", worked(limit), loss, bound=bound, choice=choice)


# --- Q-Palette (arXiv 2509.20214), released coefficients of LLaMA-3.1-8B, block 0; trellis codes at 2, 3, 4 bits.

TRELLIS = {2: 0.071013, 3: 0.018913, 4: 0.005901}  # relative squared error
_LATENCY = {  # hundredths of a microsecond on one GPU, at 2, 3, 4 bits; several letters: fused
    "q": (872, 1052, 1258), "k": (639, 660, 724), "v": (646, 666, 721), "o": (875, 1055, 1260),
    "u": (2007, 2906, 3443), "g": (2007, 2905, 3443), "d": (1935, 2698, 3412), "qk": (1261, 1574, 1700),
    "kv": (903, 941, 1071), "qv": (1252, 1563, 1695), "qkv": (1497, 1915, 2077), "ug": (3667, 5159, 6634),
}  # fmt: skip
_SENSITIVITY = {"q": 0.000570, "k": 0.001614, "v": 0.133309, "o": 0.017867, "u": 0.019636, "g": 0.013403, "d": 0.085490}


def qpalette_memory() -> Known:
    """v, down and q projections within 3 bits a weight: 4, 3 and 2 bits."""
    weights = np.array([4096 * 1024, 14336 * 4096, 4096 * 4096])
    loss = np.outer([0.1333094, 0.0854904, 0.00057015], list(TRELLIS.values()))
    cost = np.outer(weights, list(TRELLIS)) // 8
    return Known("qpalette-memory", make(loss, cost, int(3 * weights.sum()) // 8), 0.00244404, 2e-7, choice=(2, 1, 0))


def qpalette_latency(limit: int, *, fused: bool) -> ChoiceProblem:
    """One class for each set of matrices that could run as one kernel; an option is a partition with bits for each part."""
    families = [["q", "k", "v"], ["u", "g"], ["o"], ["d"]]
    return padded([_fusions(family, fused) for family in families], limit)


def _fusions(family: list[str], fused: bool) -> list[tuple[int, float]]:
    options = []
    for size in range(1, len(family) + 1):
        for parts in itertools.combinations(_LATENCY, size):
            if sorted("".join(parts)) == sorted(family) and (fused or all(len(part) == 1 for part in parts)):
                for bits in itertools.product(TRELLIS, repeat=size):
                    spent = sum(_LATENCY[part][b - 2] for part, b in zip(parts, bits, strict=True))
                    lost = sum(_SENSITIVITY[m] * TRELLIS[b] for part, b in zip(parts, bits, strict=True) for m in part)
                    options.append((spent, lost))
    return options


def _qpalette() -> Iterator[Known]:
    yield qpalette_memory()
    yield Known("qpalette-90us-fused", qpalette_latency(9000, fused=True), 0.00932218, 2e-7, choice=(2, 0, 2, 0))
    yield Known("qpalette-90us", qpalette_latency(9000, fused=False), 0.01930781, 2e-7, choice=(0, 0, 0, 0))
    yield Known("qpalette-100us-fused", qpalette_latency(10000, fused=True), 0.00486808, 2e-7, choice=(2, 0, 2, 1))
    yield Known("qpalette-100us", qpalette_latency(10000, fused=False), 0.00524276, 2e-7)


# --- HAWQ-V3 (arXiv 2011.10680), ResNet-18: 19 convolutions at 4 or 8 bits; a down-sampling convolution is tied to the one
# that feeds the same sum. Budgets lie a share f of the way from all-4 to all-8. All nine published plans.

_TRACE = [.06857826, .03162379, .03298575, .01205663, .02222431, .00596336, .06931772, .00807129, .00372905, .00530698,
          .00209011, .00737569, .00210454, .00151197, .00158041, .00078146, .00451841, .00098745, .00072944]  # fmt: skip
_ERROR_8 = [.0235, .0125, .0102, .0082, .0145, .0344, .0023, .0287, .0148, .0333, .0682, .0027, .0448, .0336, .0576, .1130,
            .0102, .0947, .0532]  # fmt: skip
_ERROR_4 = [6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, .6827, 9.0942, 4.8857, 10.7599, 21.7546, .8603, 14.5324,
            10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016]  # fmt: skip
_PARAMETERS = [36864, 36864, 36864, 36864, 73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824,
               1179648, 2359296, 131072, 2359296, 2359296]  # fmt: skip
_WIDE, _HALF, _DOWN = 115605504, 57802752, 6422528
_MACS = [_WIDE, _WIDE, _WIDE, _WIDE, _HALF, _WIDE, _DOWN, _WIDE, _WIDE, _HALF, _WIDE, _DOWN, _WIDE, _WIDE, _HALF, _WIDE,
         _DOWN, _WIDE, _WIDE]  # fmt: skip
_TIME_4 = [.21094404, .21092674, .21104113, .21086851, .13642465, .19167506, .02532183, .19148203, .19142914, .11395316,
           .20556011, .01917474, .20566918, .20566509, .13185102, .22287786, .01790088, .22304611, .22286099]  # fmt: skip
_TIME_8 = [.36189111, .36211718, .31141909, .30454471, .19184896, .38948934, .0334169, .38904905, .3892859, .19134735,
           .34307431, .02802354, .34313329, .34310756, .21117103, .37376585, .02896843, .37398187, .37405185]  # fmt: skip
HAWQ_TIES = [(4, 6), (9, 11), (14, 16)]
HAWQ_RESOURCES = ("size", "bops", "latency")
HAWQ_PLANS = {  # resource: for each f, the published bits, the sum of Omega, and the bound of its linear relaxation
    "size": [("8888888888888844444", 0.1182996, 0.1144363), ("8888888888888884844", 0.0745059, 0.0559307),
             ("8888888888888488884", 0.0334406, 0.0220823)],
    "bops": [("8884848444444444444", 0.4604240, 0.4458143), ("8884888848884444444", 0.2156893, 0.1870047),
             ("8888888848888484884", 0.0799647, 0.0705113)],
    "latency": [("8884848444444444444", 0.4604240, 0.3997573), ("8888848848884484844", 0.2026738, 0.1943681),
                ("8888888848888484884", 0.0799647, 0.0633072)],
}  # fmt: skip


def hawq(*resources: str, quarter: int) -> ChoiceProblem:
    """The untied problem: 19 items, options 4 and 8 bits, `quarter` in 1..3 for the share of the budget.

    Costs in half bytes, 1/64 of a multiply-accumulate, 10 picoseconds.
    """
    loss = np.array([_TRACE, _TRACE]).T * np.array([_ERROR_4, _ERROR_8]).T
    tables = {
        "size": np.outer(_PARAMETERS, [1, 2]),
        "bops": np.outer(_MACS, [1, 4]),
        "latency": np.rint(np.array([_TIME_4, _TIME_8]).T * 1e8).astype(np.int64),
    }
    cost = np.array([tables[name] for name in resources])
    least, most = cost[:, :, 0].sum(axis=1), cost[:, :, 1].sum(axis=1)
    return make(loss, cost, *(least + quarter * (most - least) // 4).tolist())


def _hawq() -> Iterator[Known]:
    for resource, plans in HAWQ_PLANS.items():
        for quarter, (bits, loss, bound) in enumerate(plans, start=1):
            problem, _ = merge_tied(hawq(resource, quarter=quarter), HAWQ_TIES)
            tied = {follower for _, follower in HAWQ_TIES}
            choice = tuple(int(b == "8") for layer, b in enumerate(bits) if layer not in tied)
            yield Known(f"hawq-{resource}-{quarter}/4", problem, loss, 1e-7, bound, choice)


# --- MC-MoE (arXiv 2410.06270), Mixtral 8x7B, block 0: 1, 2 or 3 bits for each of 8 experts within a sum of bits.

_EXPERT_COUNTS = [68862, 63387, 62746, 63751, 66314, 70431, 56466, 72331]
_EXPERT_WEIGHTS = [19891.639, 22812.152, 21595.748, 21344.5, 19123.953, 16804.887, 17566.242, 18464.881]
_EXPERT_ERRORS = [
    (455.0034, 180.3979, 78.2074), (3856.1067, 708.0323, 369.9871), (735.9800, 372.6560, 156.3292),
    (663.1968, 341.5241, 143.5118), (525.4329, 273.9226, 114.7053), (434.1846, 218.0749, 92.0674),
    (3275.4322, 677.7527, 288.9788), (450.2718, 231.7869, 97.3900),
]  # fmt: skip
_EXPERTS = {12: ("13211121", 21471.53), 14: ("23221121", 17904.85), 16: ("23222131", 15002.16), 18: ("23322132", 12480.19),
            20: ("23332232", 10269.36)}  # fmt: skip


def _mixtral() -> Iterator[Known]:
    share = np.array(_EXPERT_COUNTS) / sum(_EXPERT_COUNTS)
    mass = np.array(_EXPERT_WEIGHTS) / sum(_EXPERT_WEIGHTS)
    loss = 1000 * (share * mass**1.5)[:, None] * np.array(_EXPERT_ERRORS)
    cost = np.tile([1, 2, 3], (8, 1))
    for limit, (bits, least) in _EXPERTS.items():
        yield Known(f"mixtral-{limit}", make(loss, cost, limit), least, 0.01, choice=tuple(int(b) - 1 for b in bits))


def experts(problem: ChoiceProblem) -> ChoiceProblem:
    """A block of experts at 1, 2 or 3 bits, with MC-MoE's rules: at least one at 3 bits, at least one at 2."""
    members = range(problem.items)
    return replace(problem, rules=(count(members, [2], at_least=1), count(members, [1], at_least=1)))


def _mixtral_ruled() -> Iterator[Known]:
    for known in _mixtral():
        yield replace(known, name=f"{known.name}-ruled", problem=experts(known.problem))


# --- BAQ (arXiv 2506.05664): columns whose loss is l 4^(R - b). With whole bits, equal weights and convex losses, giving one
# bit at a time to the column that gains most is optimal, which a person can do by hand.


def _baq() -> Iterator[Known]:
    bits = np.arange(9)
    for name, columns, rate, least in (("baq", [16, 4, 1, 0.25], 3, 10.0), ("baq-clamped", [1024, 16, 1, 1 / 64], 1, 84.0625)):
        loss = np.array(columns)[:, None] * 4.0 ** (rate - bits)
        yield Known(name, make(loss, np.tile(bits, (4, 1)), 4 * rate), least)


# --- CalibTIP (arXiv 2006.10518): three layers at 2, 4 or 8 bits, losses measured one layer at a time, within a share D of the
# 32-bit size.

_CALIBTIP_SIZES = [10, 40, 50]
_CALIBTIP_LOSSES = [[0.30, 0.02, 0.0], [0.90, 0.10, 0.0], [0.12, 0.03, 0.0]]


def calibtip(hundredths: int) -> ChoiceProblem:
    """Within `hundredths` / 100 of the 32-bit size; costs in bits."""
    return make(_CALIBTIP_LOSSES, np.outer(_CALIBTIP_SIZES, [2, 4, 8]), hundredths * 32 * sum(_CALIBTIP_SIZES) // 100)


def _calibtip() -> Iterator[Known]:
    yield Known("calibtip-0.13", calibtip(13), 0.15, choice=(1, 1, 1))
    yield Known("calibtip-0.11", calibtip(11), 0.22, choice=(2, 1, 0))


def _calibtip_ruled() -> Iterator[Known]:
    """The second best plan within 0.11 of the size: the best one is ruled out, as more than two parts of it together."""
    best = Rule("not the best plan", np.arange(3), np.array([2, 1, 0]), np.ones(3, dtype=np.int64), most=2)
    yield Known("calibtip-0.11-second", replace(calibtip(11), rules=(best,)), 0.24, choice=(1, 1, 0))


# --- MixDQ (methods_moe_and_more.md, section 6.5): the sum of a quality S is to be large and the bits are to lie in a band,
# 0.02 around a mean. A loss is what is missing from the item's best S, so the least loss is the sum of the best less the
# published S.

_MIXDQ = {  # group: elements, widths, S of each item at each width, and for each mean the widths chosen and their S
    "content": ([10, 20], [2, 4, 8], [[0.90, 0.98, 0.999], [0.70, 0.95, 0.998]],
                {Fraction(4): ((4, 4), 1.93), Fraction(16, 3): ((8, 4), 1.949), Fraction(20, 3): ((4, 8), 1.978)}),
    "quality": ([15, 5], [4, 8], [[20.0, 38.0], [24.0, 40.0]],
                {Fraction(5): ((4, 8), 60.0), Fraction(7): ((8, 4), 62.0), Fraction(8): ((8, 8), 78.0)}),
}  # fmt: skip


def mixdq(group: str, mean: Fraction, *, band: bool = True) -> ChoiceProblem:
    """The layers of a group within 0.02 of a mean width, or, without the `band`, at most the mean; costs in bits / 100."""
    elements, widths, quality, _ = _MIXDQ[group]
    near = Fraction(2, 100) if band else Fraction(0)
    most, least = math.floor(100 * (mean + near) * sum(elements)), math.ceil(100 * (mean - near) * sum(elements))
    best = np.array(quality).max(axis=1, keepdims=True)
    plain = make(best - quality, 100 * np.outer(elements, widths), most)
    return replace(plain, floor=np.array([least])) if band else plain


def _mixdq() -> Iterator[Known]:
    for group, (_, widths, quality, plans) in _MIXDQ.items():
        for mean, (bits, total) in plans.items():
            loss = math.fsum(max(row) for row in quality) - total
            choice = tuple(widths.index(b) for b in bits)
            yield Known(f"mixdq-{group}-{mean}", mixdq(group, mean), loss, 1e-9, choice=choice)


# --- QuantMoE-Bench (methods_moe_and_more.md, section 2.6): the matrices that score highest, k of them, get 4 bits, the others
# 2. The score is the largest ratio, over columns, of the largest to the mean magnitude.

OUTLIER_MATRICES = {
    "A": [[1, 2], [1, -2], [1, 2], [-1, 2]],
    "B": [[1, 2], [1, -2], [5, 2], [-1, 2]],
    "C": [[0.1, 2], [0.1, -4], [0.1, 2], [-0.1, 2]],
}


def outlier_scores() -> list[float]:
    magnitudes = [np.abs(np.array(matrix)) for matrix in OUTLIER_MATRICES.values()]
    return [float((magnitude.max(axis=0) / magnitude.mean(axis=0)).max()) for magnitude in magnitudes]


def _quantmoe() -> Iterator[Known]:
    loss = np.outer(outlier_scores(), [1, 0])
    one = count(range(3), [1], exactly=1)
    yield Known("quantmoe-bench", replace(make(loss, [[2, 4]] * 3, 12), rules=(one,)), 1.0 + 1.6, choice=(0, 1, 0))


# --- Made to be awkward.


def _awkward() -> Iterator[Known]:
    yield Known("one item, one option", make([[3.0]], [[5]], 5), 3.0, bound=3.0, choice=(0,))
    yield Known("room for everything", make([[3.0, 1.0], [2.0, 7.0]], [[1, 9], [9, 1]], 10**12), 3.0, bound=3.0, choice=(1, 0))
    yield Known("losses all zero", make(np.zeros((4, 3)), np.arange(12).reshape(4, 3), 18), 0.0, bound=0.0)
    yield Known("costs all zero", make([[2.0, 1.0], [1.0, 3.0]], np.zeros((2, 2), dtype=int), 0), 2.0, bound=2.0, choice=(1, 0))
    yield Known("all options equal", make(np.ones((5, 4)), np.ones((5, 4), dtype=int), 5), 5.0, bound=5.0)
    yield Known("a dearer option loses more", make([[1.0, 5.0], [4.0, 2.0]], [[1, 3], [2, 3]], 4), 3.0, bound=3.0, choice=(0, 1))
    # Fits only as 3 + 5 + 7; greed takes the 9.
    classes = [[(0, 10.0), (3, 6.9), (9, 0.5)], [(0, 10.0), (5, 5.1)], [(0, 10.0), (7, 2.9)]]
    yield Known("exact fit off the hull", padded(classes, 15), 14.9, choice=(1, 1, 1))
    # A subset of the numbers adds up to 50: 24 + 26.
    numbers = [31, 24, 26, 17, 43]
    subset = padded([[(0, float(number)), (number, 0.0)] for number in numbers], 50)
    yield Known("subset sum", subset, float(sum(numbers) - 50))
    pinned = make([[9.0, 1.0], [4.0, 2.0]], [[0, 0], [1, 5]], 3, allowed=[[True, False], [True, True]])
    yield Known("the better option is not allowed", pinned, 13.0, choice=(0, 0))
    large = make([[1e6, 1e-12], [1e-6, 1e-12], [1.0, 0.5]], [[1, 2], [1, 2], [1, 2]], 5)
    yield Known("losses from 1e-12 to 1e6", large, 0.5 + 1e-6 + 1e-12, 1e-11, choice=(1, 0, 1))
    giant = make([[2.0, 1.0, 0.0], [2.0, 0.9, 0.0]], np.array([[0, 2**40 + 1, 2**41], [0, 2**40, 2**41 - 1]]), 2**41 + 1)
    yield Known("costs of terabytes", giant, 1.9)


KNOWN: list[Known] = [*_worked(), *_qpalette(), *_hawq(), *_mixtral(), *_baq(), *_calibtip(), *_awkward()]
KNOWN_RULED: list[Known] = [*_mixtral_ruled(), *_calibtip_ruled(), *_mixdq(), *_quantmoe()]  # with floors or rules


# --- Random families. Each takes a generator and a size and gives a problem whose limit lies between the extremes.

Tables = tuple[Floats, Ints]


def _layers(rng: np.random.Generator, items: int, options: int) -> Tables:
    """Matrices of all sizes whose loss falls about fourfold with each bit, as measured tables do."""
    size = np.exp(rng.uniform(np.log(1e4), np.log(1e6), items)).astype(np.int64)
    bits = np.linspace(2, 8, options)
    decay = 2.0 ** (-rng.uniform(1.6, 2.1, (items, 1)) * bits)
    loss = np.exp(rng.normal(0, 1.5, (items, 1))) * decay * np.exp(rng.normal(0, 0.2, (items, options)))
    return loss, (size[:, None] * (bits + 0.25) / 8).astype(np.int64)


def _wild(rng: np.random.Generator, items: int, options: int) -> Tables:
    """No order at all between cost and loss: most options are dominated."""
    return rng.random((items, options)), rng.integers(0, 1000, (items, options))


def _whole(rng: np.random.Generator, items: int, options: int) -> Tables:
    """Small whole numbers: ties everywhere, equal costs, zeros."""
    return rng.integers(0, 6, (items, options)).astype(np.float64), rng.integers(0, 6, (items, options))


def _wide(rng: np.random.Generator, items: int, options: int) -> Tables:
    """Losses from 1e-12 to 1e6 in one table."""
    return 10.0 ** rng.uniform(-12, 6, (items, options)), rng.integers(1, 10**6, (items, options))


def _linear(rng: np.random.Generator, items: int, options: int) -> Tables:
    """Every slope is the same, so the relaxation says nothing: the hardest for bounds. Whole numbers, so sums are exact."""
    cost = rng.integers(0, 50, (items, options)) * 3
    return np.asarray(150.0 - cost, dtype=np.float64), cost


def _near(rng: np.random.Generator, items: int, options: int) -> Tables:
    """All but linear, in whole numbers: many choices lie close above the optimum, so that a bound off by little shows."""
    cost = rng.integers(0, 30, (items, options))
    return np.asarray(1000 * (30 - cost) + rng.integers(0, 100, cost.shape), dtype=np.float64), cost


def _twins(rng: np.random.Generator, items: int, options: int) -> Tables:
    """Copies of one item."""
    loss, cost = _layers(rng, 1, options)
    return np.repeat(loss, items, axis=0), np.repeat(cost, items, axis=0)


FAMILIES = {"layers": _layers, "wild": _wild, "whole": _whole, "wide": _wide, "linear": _linear, "near": _near, "twins": _twins}


def random_problem(family: str, seed: int, items: int, options: int, *, holes: bool = True) -> ChoiceProblem:
    """A feasible problem with one resource; `holes` forbids about a fifth of the options."""
    rng = np.random.default_rng([seed, items, options])
    loss, cost = FAMILIES[family](rng, items, options)
    allowed = rng.random(loss.shape) > 0.2 if holes else np.ones(loss.shape, dtype=np.bool_)
    allowed[np.arange(items), rng.integers(0, options, items)] = True
    least = np.where(allowed, cost, cost.max()).min(axis=1).sum()
    most = np.where(allowed, cost, 0).max(axis=1).sum()
    return make(loss, cost, int(least + rng.uniform(0, 0.9) * (most - least)), allowed=allowed)


def ruled(family: str, seed: int, items: int, options: int) -> ChoiceProblem:
    """A problem with one or two resources, some with floors, and up to three rules; it may have no answer.

    The second resource belongs to another problem of the family, so that neither limit follows from the other.
    """
    rng = np.random.default_rng([seed, items, options, 1])
    first, second = (random_problem(family, 2 * seed + k, items, options) for k in range(2))
    cost = np.concatenate([first.cost, second.cost])[: rng.integers(1, 3)]
    least = np.where(first.allowed, cost, cost.max()).min(axis=2).sum(axis=1)
    most = np.where(first.allowed, cost, 0).max(axis=2).sum(axis=1)
    limit = least + (rng.uniform(0.1, 1.0, len(cost)) * (most - least)).astype(np.int64)
    floor = np.where(rng.random(len(cost)) < 0.3, least + (rng.uniform(0, 0.7, len(cost)) * (limit - least)).astype(np.int64), 0)
    problem = ChoiceProblem(first.loss, cost, limit, first.allowed, floor)
    members = sorted(rng.choice(items, size=max(1, items // 2), replace=False).tolist())
    made: list[Rule] = [
        count(members, [int(rng.integers(options))], at_least=int(rng.integers(0, 2)), at_most=len(members) // 2 + 1)
    ]
    if options > 1:
        made.append(balance(range(items), [0], [options - 1]))
    if items > 1:
        made.append(forbid((0, int(rng.integers(options))), (1, int(rng.integers(options)))))
    rules: list[Rule] = []
    for rule in made:
        if rng.random() < 0.5:
            try:
                replace(problem, rules=(*rules, rule))
            except ValueError:  # what is allowed rules it out from the start, and such a problem is refused
                continue
            rules.append(rule)
    return replace(problem, rules=tuple(rules))


def crossed(items: int) -> ChoiceProblem:
    """Losses and two costs unrelated, both limits at three fifths of what chance would spend: both bind."""
    rng = np.random.default_rng(items)
    return make(rng.random((items, 6)), rng.integers(1, 1000, (2, items, 6)), 300 * items, 300 * items)
