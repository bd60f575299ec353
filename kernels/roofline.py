"""A device's speed in constants, and the seconds that they give a product y = x @ W.T: a roofline with three roofs.

W is (outputs N, inputs K) in b bits with a group of g inputs to a scale, x is (rows M, inputs):

    t = t0 + max( bytes / (eta_q BW),  N K c[b] ceil(M / BM) / (eta_i I),  2 N K M / (eta_tc TC) )
    bytes = N K b / 8 + 4 N ceil(K / g) + 2 M (N + K)

BW memory bytes a second, I lane instructions a second, TC floating-point operations a second of the matrix units, c the
instructions it takes to unpack and multiply a weight, BM the rows that share one unpacking; the etas are the shares of
these rates that kernels reach, t0 is the start of a kernel. An fp16 scale and an fp16 zero point are read for each group.
Weights of 16 or 32 bits are not unpacked: no middle term, b / 8 bytes for a weight and for an activation, eta_dense and
eta_dense_tc in place of eta_q and eta_tc, and TC in proportion to 16 / b. The roofline of Williams, Waterman and Patterson
(2009) with a third roof, the issue of instructions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

DENSE = (16, 32)


@dataclass(frozen=True)
class Point:
    """One measured product. `group_size` None: one group a row; of no matter to dense weights. Where several kernels were
    measured at one point, the fastest counts."""

    kernel: str
    outputs: int
    inputs: int
    bits: int
    rows: int
    seconds: float
    group_size: int | None = 128

    @property
    def shape(self) -> tuple[int, int]:
        return self.outputs, self.inputs


@dataclass(frozen=True)
class Constants:
    """The formula's constants. `gemv` (one row) and `gemm` (more) are c for 1 to 8 bits; empty where nobody has counted:
    the term of the instructions is then left out."""

    bandwidth: float  # bytes / s
    tensor_rate: float  # floating-point operations / s at 16 bits
    issue_rate: float  # lane instructions / s
    eta_q: float
    eta_i: float
    eta_tc: float
    eta_dense: float
    eta_dense_tc: float
    t0: float  # s
    block_rows: int
    gemv: tuple[float, ...]
    gemm: tuple[float, ...]


@dataclass(frozen=True)
class DeviceModel:
    """A device: constants, and the points measured on it. `fit_error` is the root mean square of the formula's relative
    errors at the points of a shape that the fit had not seen; None: the constants are not fitted."""

    name: str
    constants: Constants
    fit_error: float | None = None
    date: str | None = None
    machine: str | None = None
    versions: dict[str, str] = field(default_factory=dict, hash=False)
    note: str = ""
    points: tuple[Point, ...] = ()

    @property
    def measured(self) -> bool:
        return bool(self.points)

    @property
    def source(self) -> str:
        """One line for a reader: where the numbers come from."""
        return f"measured on {self.date}" if self.measured else "not measured: starting constants"

    @property
    def digest(self) -> str:
        """SHA-256 of all that a latency follows from."""
        key = [self.name, asdict(self.constants), [asdict(point) for point in self.points]]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def formula(asked: Point, constants: Constants) -> float:
    """The seconds at the top of this file; `asked.seconds` and `asked.kernel` are not read."""
    shares = efficiencies(asked, constants)
    return constants.t0 + max(ideal / share for ideal, share in zip(terms(asked, constants), shares, strict=True))


def terms(asked: Point, constants: Constants) -> tuple[float, float, float]:
    """Seconds that the bytes, the instructions and the floating-point operations would take at the device's full rates."""
    (n, k), m, bits = asked.shape, asked.rows, asked.bits
    if bits in DENSE:
        width = bits // 8
        return width * (n * k + m * (n + k)) / constants.bandwidth, 0.0, 2 * n * k * m * width / 2 / constants.tensor_rate
    groups = -(-k // group_inputs(asked, asked.group_size))
    counted = n * k * bits / 8 + 4 * n * groups + 2 * m * (n + k)
    table = constants.gemv if m == 1 else constants.gemm
    issued = n * k * table[bits - 1] * -(-m // constants.block_rows) if table else 0.0
    return counted / constants.bandwidth, issued / constants.issue_rate, 2 * n * k * m / constants.tensor_rate


def efficiencies(asked: Point, constants: Constants) -> tuple[float, float, float]:
    """The share of each of these rates that kernels reach."""
    if asked.bits in DENSE:
        return constants.eta_dense, constants.eta_i, constants.eta_dense_tc
    return constants.eta_q, constants.eta_i, constants.eta_tc


def group_inputs(point: Point, group_size: int | None) -> int:
    """Inputs to a scale in the matrix of `point`; a group longer than a row is a row."""
    return point.inputs if group_size is None else min(group_size, point.inputs)
