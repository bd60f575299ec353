"""Spikes as a constraint: found on calibration data, turned into pins that a plan takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bitplan.allocator import ProfileRequest, inspect_model
from bitplan.allocator.build import build_problem
from bitplan.allocator.request import PlanRequest
from bitplan.allocator.spiked import protecting_pins, spiked_units
from bitplan.sensitivity.spikes import Spike
from shelf import Shelf


def test_units_come_with_those_that_stand_out_most_first(shelf: Shelf, tmp_path: Path) -> None:
    request = ProfileRequest(str(shelf.model("llama")), calibration=str(shelf.text), tokens=512)
    found = spiked_units(request, home=tmp_path)
    ratios = [spike.ratio for spike in found]
    assert ratios == sorted(ratios, reverse=True)
    assert {spike.unit for spike in found} <= {unit.name for unit in inspect_model(request.model, home=tmp_path).units}
    assert min(ratios) >= 1 or 0 in ratios


def test_pins_name_exactly_the_units_above_the_threshold(shelf: Shelf, tmp_path: Path) -> None:
    inventory = inspect_model(str(shelf.model("llama")), home=tmp_path)
    names = [unit.name for unit in inventory.units]
    spikes = tuple(Spike(name, 10.0 * (i + 1), 1.0) for i, name in enumerate(names))
    pins = protecting_pins(spikes, 25.0)
    assert all(fmt == "native" for _, fmt in pins)
    assert [name for name in names if any(re.fullmatch(pattern, name) for pattern, _ in pins)] == names[2:]
    request = PlanRequest(ProfileRequest(str(shelf.model("llama"))), "100%", pins=pins)
    assert set(build_problem(inventory, None, request).pins) == set(names[2:])
    assert protecting_pins(spikes[:2], 25.0) == ()
    assert json.dumps(dict(pins))
