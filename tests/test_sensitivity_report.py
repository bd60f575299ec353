from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitplan.sensitivity.report import SensitivityReport

Floats = npt.NDArray[np.float64]


def report(loss: Floats, stderr: Floats | None = None) -> SensitivityReport:
    units, formats = loss.shape
    return SensitivityReport(
        id="i" * 64,
        metric="kl_fisher",
        quantity="nats per token",
        settings={"tokens": 4096, "calibration": None},
        units=tuple(f"layer.{u}" for u in range(units)),
        formats=tuple(f"int{f}-row" for f in range(formats)),
        loss=loss,
        stderr=stderr,
        batches=8,
        inventory_fingerprint="a" * 64,
        render_fingerprint="b" * 64,
        data_fingerprint="c" * 64,
        seed=3,
        seconds=0.1,
        versions={"bitplan": "0"},
    )


def same(one: SensitivityReport, other: SensitivityReport) -> bool:
    """Field by field; tables bit by bit, NaN where NaN is."""
    for name in one.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, np.ndarray):
            if not (
                isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
            ):
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


ENTRY = st.one_of(st.just(float("nan")), st.floats(min_value=0, allow_infinity=False))


@given(st.integers(1, 4), st.integers(1, 4), st.data(), st.booleans())
@settings(deadline=None, max_examples=80)
def test_json_and_back_is_the_identity(units: int, formats: int, data: st.DataObject, sampled: bool) -> None:
    table = st.lists(ENTRY, min_size=units * formats, max_size=units * formats)
    loss, stderr = (np.array(data.draw(table), dtype=np.float64).reshape(units, formats) for _ in range(2))
    before = report(loss, stderr if sampled else None)
    text = json.dumps(before.to_json(), allow_nan=False)  # a pair that is not admitted is null, as JSON wants it
    after = SensitivityReport.from_json(json.loads(text))
    assert same(before, after)
    assert json.dumps(after.to_json()) == text


def test_numbers_that_are_easily_lost_survive() -> None:
    loss = np.array([[0.1 + 0.2, 5e-324, 1.7976931348623157e308], [1 / 3, 0.0, np.nan]])
    after = SensitivityReport.from_json(json.loads(json.dumps(report(loss).to_json())))
    assert after.loss.tobytes() == np.where(np.isnan(loss), np.nan, loss).tobytes()
    assert after.stderr is None


@pytest.mark.parametrize(
    ("loss", "stderr"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3))),
        (np.zeros((2, 2)), np.zeros(2)),
    ],
)
def test_tables_of_the_wrong_shape_are_refused(loss: Floats, stderr: Floats) -> None:
    with pytest.raises(ValueError, match=r"needs tables of shape \(2, 2\)"):
        report(loss, stderr)
    with pytest.raises(ValueError, match=r"needs tables of shape \(2, 2\)"):
        replace(report(loss), loss=np.zeros((2, 1)))


@pytest.mark.parametrize("wrong", [-1e-9, float("inf"), float("-inf")])
def test_a_loss_is_finite_and_not_negative(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        report(np.array([[0.0, wrong]]))
