"""Seconds of a product: the formula by hand and against the tables it was published with, measured points, files, and the fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.kernels import latency_json
from bitplan.kernels.latency import estimate, latency
from bitplan.kernels.latency_fit import fit
from bitplan.kernels.latency_json import device_model, devices, from_json, load, to_json
from bitplan.kernels.roofline import Constants, DeviceModel, Point, formula, terms

H100 = device_model("h100")
SHAPES = ((4096, 4096), (11008, 4096), (4096, 14336), (14336, 4096), (28672, 8192))
# Rates that make arithmetic easy: bytes, instructions and operations of one a second each.
UNIT = Constants(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 64, (1.0,) * 8, (1.0,) * 8)


def at(eta_i: float, device: str = "h100") -> DeviceModel:
    """With the instructions a weight of the probes that the published ranges were computed from."""
    model = device_model(device)
    gemv, gemm = (3.5, 3.9, 5.6, 4.0, 5.9, 6.4, 9.8, 2.6), (6.8, 7.1, 9.6, 6.8, 9.5, 10.1, 13.8, 7.0)
    return replace(model, constants=replace(model.constants, eta_i=eta_i, gemv=gemv, gemm=gemm))


def measured(*points: Point, constants: Constants = H100.constants) -> DeviceModel:
    return DeviceModel("hand", constants, None, "2026-01-01", "a machine", {"torch": "0"}, "by hand", points)


def megabytes(shape: tuple[int, int], bits: int) -> float:
    return terms(Point("", *shape, bits, 1, 0.0, 128), UNIT)[0] / 1e6


def of_weights(shape: tuple[int, int], bits: int) -> float:
    return megabytes(shape, bits) - 2 * sum(shape) / 1e6


class TestFormula:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((4096, 4096), (33.6, 4.7, 6.8, 8.9, 11.0, 13.1, 17.3)),
            ((11008, 4096), (90.2, 12.7, 18.3, 24.0, 29.6, 35.2, 46.5)),
            ((4096, 14336), (117.4, 16.5, 23.9, 31.2, 38.5, 45.9, 60.6)),
            ((28672, 8192), (469.8, 66.1, 95.4, 124.8, 154.1, 183.5, 242.2)),
        ],
    )
    def test_bytes_of_the_roofline(self, shape: tuple[int, int], expected: tuple[float, ...]) -> None:
        found = [of_weights(shape, bits) for bits in (16, 2, 3, 4, 5, 6, 8)]
        assert found == pytest.approx(expected, abs=0.06)

    @pytest.mark.parametrize(("bits", "speedup"), [(2, 7.09), (3, 4.91), (4, 3.76), (5, 3.04), (6, 2.56), (8, 1.94)])
    def test_ideal_speedups_at_batch_one(self, bits: int, speedup: float) -> None:
        assert megabytes((4096, 4096), 16) / megabytes((4096, 4096), bits) == pytest.approx(speedup, abs=0.006)

    def test_each_term_by_hand(self) -> None:
        """N = 4, K = 8, 3 bits, groups of 5: 12 bytes of codes, two groups a row, 10 numbers in and out of 5 rows."""
        asked = Point("", 4, 8, 3, 5, 0.0, 5)
        assert terms(asked, replace(UNIT, block_rows=2)) == (12 + 4 * 4 * 2 + 2 * 5 * 12, 4 * 8 * 3, 2 * 4 * 8 * 5)
        assert terms(replace(asked, group_size=None), UNIT)[0] == 12 + 4 * 4 + 2 * 5 * 12
        assert terms(replace(asked, bits=16), UNIT) == (2 * (32 + 5 * 12), 0, 2 * 4 * 8 * 5)
        assert terms(replace(asked, bits=32), UNIT) == (4 * (32 + 5 * 12), 0, 4 * 4 * 8 * 5)

    def test_the_slowest_roof_counts_and_the_start_is_added(self) -> None:
        base = replace(UNIT, eta_q=0.5, eta_i=0.25, eta_tc=0.125, t0=7.0)
        asked = Point("", 4, 8, 4, 1, 0.0, 8)
        assert terms(asked, base) == (16 + 16 + 24, 32, 64)
        assert formula(asked, base) == 7 + max(56 / 0.5, 32 / 0.25, 64 / 0.125)
        assert formula(asked, replace(base, eta_tc=1.0)) == 7 + 128
        assert formula(asked, replace(base, eta_tc=1.0, gemv=())) == 7 + 112

    # Speedup over 16 bits, from eta_i 0.35 to 0.9: the tables of the note that the formula comes from.
    @pytest.mark.parametrize(
        ("device", "shape", "rows", "dense_us", "low", "high"),
        [
            ("h100", (4096, 4096), 1, 14.7, (1.8, 1.3, 1.7, 1.3, 1.2, 1.5), (3.3, 2.7, 2.5, 2.1, 1.9, 1.5)),
            ("h100", (4096, 4096), 16, 14.8, (1.1, 0.8, 1.1, 0.9, 0.8, 1.1), (2.3, 1.8, 2.4, 1.9, 1.8, 1.5)),
            ("h100", (28672, 8192), 1, 180.0, (2.0, 1.4, 1.9, 1.3, 1.2, 1.6), (5.0, 3.5, 3.1, 2.6, 2.2, 1.6)),
            ("h200", (4096, 4096), 1, 10.9, (1.3, 1.0, 1.3, 0.9, 0.9, 1.5), (2.4, 2.0, 2.3, 1.9, 1.8, 1.5)),
            ("h200", (28672, 8192), 16, 126.5, (0.8, 0.6, 0.8, 0.6, 0.5, 0.8), (2.0, 1.5, 2.1, 1.5, 1.4, 1.6)),
        ],
    )
    def test_the_range_that_the_model_allows(
        self, device: str, shape: tuple[int, int], rows: int, dense_us: float, low: tuple[float, ...], high: tuple[float, ...]
    ) -> None:
        dense = latency(*shape, 16, rows, device)
        assert 1e6 * dense == pytest.approx(dense_us, abs=0.06)
        for eta_i, expected in ((0.35, low), (0.9, high)):
            found = [dense / latency(*shape, bits, rows, at(eta_i, device)) for bits in (2, 3, 4, 5, 6, 8)]
            assert found == pytest.approx(expected, abs=0.11)

    def test_fewer_bits_may_be_slower(self) -> None:
        assert latency(4096, 4096, 3) > latency(4096, 4096, 4)
        assert latency(4096, 4096, 5) > latency(4096, 4096, 4)

    @given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([*range(1, 9), 16, 32]), st.integers(1, 300))
    def test_a_larger_product_never_takes_less(self, outputs: int, inputs: int, bits: int, rows: int) -> None:
        here = latency(outputs, inputs, bits, rows)
        assert 0 < here <= latency(outputs + 1, inputs, bits, rows) + 1e-18
        assert here <= latency(outputs, inputs, bits, rows + 1) + 1e-18 or rows == 1  # another kernel from two rows on

    @pytest.mark.parametrize("change", [{"bits": 9}, {"bits": 0}, {"rows": 0}, {"outputs": 0}, {"group_size": 0}])
    def test_what_is_no_product_is_refused(self, change: dict[str, int]) -> None:
        given: dict[str, Any] = {"outputs": 8, "inputs": 8, "bits": 4, **change}
        with pytest.raises(ValueError, match=r"ask for 1 to 8, 16 or 32|cannot be timed"):
            latency(**given)


class TestPoints:
    """Times by hand; in the gaps between them lines, and outside them the formula."""

    TABLE = measured(
        Point("gemv", 1000, 1000, 4, 1, 1e-6),
        Point("other", 1000, 1000, 4, 1, 2e-6),
        Point("gemv", 2000, 2000, 4, 1, 5e-6),
        Point("gemv", 1000, 1000, 4, 16, 9e-6),
        Point("matmul", 1000, 1000, 16, 1, 3e-6, None),
    )

    def test_a_point_is_its_own_time_and_the_fastest_kernel_counts(self) -> None:
        assert estimate(1000, 1000, 4, 1, self.TABLE).seconds == 1e-6
        assert estimate(1000, 1000, 4, 16, self.TABLE).seconds == 9e-6
        assert estimate(1000, 1000, 4, 1, self.TABLE).kind == "measured"
        assert estimate(1000, 1000, 16, 1, self.TABLE, 64).seconds == 3e-6  # dense weights have no groups

    def test_between_points_of_the_same_bits_and_rows_it_is_a_line_in_size(self) -> None:
        found = estimate(2500, 1000, 4, 1, self.TABLE)
        assert found.kind == "interpolated"
        assert found.seconds == pytest.approx(3e-6)
        assert estimate(500, 2000, 4, 1, self.TABLE).seconds == pytest.approx(1e-6)

    @pytest.mark.parametrize(("shape", "bits", "rows"), [((999, 1000), 4, 1), ((2001, 2000), 4, 1), ((1000, 1000), 3, 1)])
    def test_elsewhere_it_is_the_formula(self, shape: tuple[int, int], bits: int, rows: int) -> None:
        assert estimate(*shape, bits, rows, self.TABLE) == estimate(*shape, bits, rows, "h100")
        assert estimate(*shape, bits, rows, self.TABLE).kind == "modelled"

    def test_another_group_size_is_carried_over_by_the_formula(self) -> None:
        found = estimate(1000, 1000, 4, 1, self.TABLE, 32)
        ratio = latency(1000, 1000, 4, 1, "h100", 32) / latency(1000, 1000, 4, 1, "h100", 128)
        assert found.kind == "interpolated"
        assert found.seconds == pytest.approx(1e-6 * ratio)
        assert estimate(1000, 1000, 4, 1, measured(Point("k", 1000, 1000, 4, 1, 4e-6, None)), 4000).kind == "measured"

    def test_a_device_says_whether_it_was_measured(self) -> None:
        assert self.TABLE.measured
        assert self.TABLE.source == "measured on 2026-01-01"
        assert self.TABLE.digest != measured(constants=H100.constants).digest


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_nothing_unmeasured_is_shipped_as_measured(name: str) -> None:
    model = device_model(name)
    if not model.points:
        assert not model.measured
        assert (model.fit_error, model.date, model.machine) == (None, None, None)
        assert model.source == "not measured: starting constants"
        assert "guesses" in model.note
        assert "no point has been measured" in model.note


class TestFiles:
    DOCUMENT = to_json(TestPoints.TABLE)

    @pytest.fixture(autouse=True)
    def _tables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        device_model.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(latency_json, "TABLES", tmp_path)
            yield
        device_model.cache_clear()

    def test_a_device_and_back(self, tmp_path: Path) -> None:
        (tmp_path / "hand.json").write_text(json.dumps(self.DOCUMENT))
        assert devices() == ("hand",)
        assert device_model("hand") == TestPoints.TABLE
        with pytest.raises(KeyError, match="no latency table of device 'h100'; known: hand"):
            latency(1, 1, 4)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"surplus": 1}, "surplus unknown; it has the parts device, machine"),
            ({"device": 3}, "device and note must be text"),
            ({"date": None}, "points without a date and a machine cannot be called measured; write both"),
            ({"machine": ""}, "points without a date and a machine"),
            ({"versions": {"torch": 2}}, "versions is not an object of texts"),
            ({"fit_error": -1}, "fit_error is -1, not a finite number"),
            ({"fit_error": 0.1, "points": []}, "a fit_error without points"),
            ({"points": None}, "points is not a list"),
            ({"points": [3]}, "point 0 is not an object"),
            ({"points": [{}]}, "point 0: kernel, outputs, inputs, bits, rows, seconds, group_size missing"),
            ({"constants": {**to_json(H100)["constants"], "t0": -1e-6}}, "constants: t0 is -1e-06, not a finite number"),
            ({"constants": {**to_json(H100)["constants"], "eta_i": 0}}, "constants: eta_i is 0, not a finite number above zero"),
            ({"constants": {**to_json(H100)["constants"], "gemv": [1.0]}}, "gemv is not a list of 8 numbers"),
            ({"constants": {**to_json(H100)["constants"], "block_rows": 1.5}}, "block_rows is not a whole number"),
        ],
        ids=range(14),
    )
    def test_what_is_wrong_is_named(self, change: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            from_json(self.DOCUMENT | change, "hand.json")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"seconds": float("nan")}, "point 1: seconds is nan"),
            ({"seconds": 0}, "point 1: seconds is 0"),
            ({"bits": 9}, "point 1: 9 bits; points have 1 to 8 bits, 16 or 32"),
            ({"rows": 1.5}, "point 1: rows is 1.5, not a whole number above zero; mend or drop the point"),
            ({"outputs": True}, "point 1: outputs is True"),
            ({"group_size": 0}, "point 1: group_size is 0"),
            ({"kernel": ""}, "point 1: kernel is ''"),
            ({"kernel": "gemv"}, "point 1 repeats an earlier one"),
        ],
    )
    def test_a_bad_point_is_named(self, change: dict[str, Any], said: str) -> None:
        points = [dict(point) for point in self.DOCUMENT["points"]]
        points[1] |= change
        with pytest.raises(ValueError, match=said):
            from_json(self.DOCUMENT | {"points": points}, "hand.json")

    def test_a_file_that_is_no_json_or_another_device(self, tmp_path: Path) -> None:
        path = tmp_path / "other.json"
        path.write_text("{")
        with pytest.raises(ValueError, match=r"other.json is not JSON \("):
            load(path)
        path.write_text(json.dumps(self.DOCUMENT))
        with pytest.raises(ValueError, match=r"other.json holds device 'hand'; name the file after its device"):
            load(path)


class TestFit:
    TRUE = replace(H100.constants, eta_q=0.61, eta_i=0.42, eta_dense=0.9, eta_dense_tc=0.7, t0=3.3e-6)

    def points(self, rows: tuple[int, ...] = (1, 4, 16, 64, 256), noise: float = 0.0) -> list[Point]:
        generator = np.random.default_rng(0)
        asked = [Point("k", *shape, bits, m, 1.0) for shape in SHAPES for bits in (2, 3, 4, 5, 6, 8, 16) for m in rows]
        return [
            replace(point, seconds=formula(point, self.TRUE) * float(1 + noise * generator.uniform(-1, 1))) for point in asked
        ]

    def test_planted_constants_come_back(self) -> None:
        found = fit(H100, self.points())
        for name in ("eta_q", "eta_i", "eta_dense", "eta_dense_tc", "t0"):
            assert getattr(found.constants, name) == pytest.approx(getattr(self.TRUE, name), rel=1e-6)
        assert found.fit_error == pytest.approx(0, abs=1e-9)
        assert found.points == tuple(self.points())

    def test_a_roof_that_is_over_no_point_keeps_its_constant(self) -> None:
        found = fit(H100, [point for point in self.points((1,)) if point.bits < 16]).constants
        assert (found.eta_tc, found.eta_dense, found.eta_dense_tc) == (0.5, 0.88, 0.8)
        assert found.eta_i == pytest.approx(self.TRUE.eta_i)

    def test_noise_shows_in_the_error_and_little_in_the_constants(self) -> None:
        found = fit(H100, self.points(noise=0.1))
        assert found.fit_error is not None
        assert 0.02 < found.fit_error < 0.1
        assert found.constants.eta_i == pytest.approx(self.TRUE.eta_i, rel=0.05)
        assert found.constants.eta_q == pytest.approx(self.TRUE.eta_q, rel=0.05)

    def test_the_error_is_that_of_the_shape_held_out(self) -> None:
        """One shape is slower by half than the formula has it: a fit that has not seen it is off by a third there."""
        odd = (28672, 8192)
        points = [replace(p, seconds=1.5 * p.seconds) if p.shape == odd else p for p in self.points()]
        found = fit(H100, points, odd)
        assert found.constants.eta_i == pytest.approx(self.TRUE.eta_i)
        assert found.fit_error == pytest.approx(1 / 3)

    def test_what_cannot_be_fitted_is_refused(self) -> None:
        one = [point for point in self.points() if point.shape == SHAPES[0]]
        with pytest.raises(ValueError, match="needs points of two shapes or more, one of them to be held out, not 1"):
            fit(H100, one)
        with pytest.raises(ValueError, match=r"shape \(1, 1\) was not measured, so it cannot be held out; name one of"):
            fit(H100, self.points(), (1, 1))
