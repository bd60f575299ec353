"""Numbers and proofs in words, said the same way in the terminal, the report and the dashboard."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..allocator import Plan
    from ..allocator.plan import PlannedLatency, PredictedLatency

MIB = 1 << 20
MEASURED = {None: "not yet", True: "passed", False: "failed"}
PROOFS = {
    "multipliers": "proven optimal by its multiplier alone",
    "search": "proven optimal by exact search",
    "bound": "not proven optimal: no plan can be better by more than the gap",
}


def size(count: float) -> str:
    """Bytes for a reader: `59.98 MiB`, `1.40 GiB`, `812 B`.

    >>> size(62_914_560)
    '60.00 MiB'
    """
    for unit, name in ((1 << 30, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def number(value: float) -> str:
    """Three significant digits, without an exponent where a reader needs none.

    >>> number(0.021349), number(3.2e-7), number(0)
    ('0.0213', '3.20e-07', '0')
    """
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e4:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def figure(value: float) -> str:
    """A task's figure, with the digits that tell a cosine of 0.99995 from one.

    >>> figure(0.999954), figure(12.6)
    ('0.99995', '12.6')
    """
    return f"{value:.5g}"


def moment(stamp: str | None) -> str:
    """A stored time for a reader, in UTC to the minute.

    >>> moment("2026-11-22T19:39:39.120Z")
    '2026-11-22 19:39'
    """
    return "" if stamp is None else stamp[:16].replace("T", " ")


def duration(seconds: float) -> str:
    """
    >>> duration(3.2), duration(75), duration(5400)
    ('3 s', '1 min 15 s', '1 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def loss(value: float, stderr: float | None) -> str:
    """`0.0213 ± 0.0011`, or without the error where there is none."""
    return number(value) if stderr is None else f"{number(value)} ± {number(stderr)}"


def latency(predicted: PredictedLatency, planned: PlannedLatency) -> str:
    """`3.21 of 3.5 ms a token at batch 1 on h100 (not measured: starting constants)`."""
    took, allowed = figure(predicted.ms), figure(planned.limit_ms)
    return f"{took} of {allowed} ms a token at batch 1 on {predicted.device} ({predicted.source})"


def verdict(report: dict[str, Any]) -> str:
    """The outcome of a verification in a few words."""
    if report["passed"]:
        return "kept its promise"
    return "kept its promise, but a uniform plan is better" if report["promise_kept"] else "broke its promise"


def products(report: dict[str, Any]) -> str:
    """`49 products by back end c, at most 3.1e-07 of the largest output from float64`; empty where nothing is packed."""
    checks = report["kernel_checks"]
    if not checks:
        return ""
    backends = " and ".join(sorted({check["backend"] for check in checks}))
    most = max(check["max_difference"] for check in checks)
    count = "1 product" if len(checks) == 1 else f"{len(checks)} products"
    return f"{count} by back end {backends}, at most {most:.2g} of the largest output from float64"


def proof(plan: Plan) -> str:
    """One line: `gap 0.0002 (0.9 %), proven optimal by exact search`."""
    certificate = plan.certificate
    share = f" ({100 * certificate.gap / plan.predicted.loss:.2g} %)" if plan.predicted.loss > 0 else ""
    return f"gap {number(certificate.gap)}{share}, {PROOFS[certificate.proof]}"


def price_per_mib(plan: Plan) -> float:
    """What one more MiB would save, in the plan's quantity: the multiplier, rescaled."""
    certificate = plan.certificate
    return MIB * certificate.multiplier_numerator / certificate.multiplier_denominator / certificate.loss_scale


def certificate_sentences(plan: Plan) -> list[str]:
    """The certificate in words, for a reader who will not check it and for one who will."""
    certificate, predicted = plan.certificate, plan.predicted
    if plan.provenance.profile_id is None:
        return ["The budget holds the untouched model: nothing is lost, and nothing had to be measured to know it."]
    sentences = [
        f"No plan within {_limits(plan)} can be predicted to lose less than {number(certificate.lower_bound)} "
        f"{predicted.quantity}; this one is predicted to lose {number(predicted.loss)}.",
        f"That leaves a {proof(plan)}.",
    ]
    price = price_per_mib(plan)
    if price > 0:
        sentences.append(f"At this budget one more MiB would save about {number(price)} {predicted.quantity}.")
    sentences.append(
        f"The plan's JSON holds the whole problem as integers ({len(certificate.items)} choices among {len(certificate.formats)} "
        "formats), so the bound can be checked without trusting the solver."
    )
    return sentences


def _limits(plan: Plan) -> str:
    planned = plan.budget.latency
    within = size(plan.budget.limit_bytes)
    return within if planned is None else f"{within} and {figure(planned.limit_ms)} ms a token on {planned.device}"
