from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from bitplan.sensitivity import half_products
from bitplan.sensitivity.half_products import LARGE, factor_dtype
from bitplan.sensitivity.metrics import kl_fisher
from bitplan.sensitivity.study import Study
from loops import renderings

FORMATS = ("int3-g32-asym", "int6-g64-asym")


def test_only_large_products_where_the_processor_has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, large, small = torch.zeros(1, 4, 256), torch.zeros(LARGE // 256, 256), torch.zeros(LARGE // 256 - 1, 256)
    for able in (True, False):
        monkeypatch.setattr(half_products, "multiplies_bf16", lambda able=able: able)
        assert factor_dtype(rows, large) == (torch.bfloat16 if able else torch.float32)
        assert factor_dtype(rows, small) == torch.float32


def test_what_this_processor_can_is_known() -> None:
    assert half_products.multiplies_bf16() in (True, False)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_losses_move_by_less_than_a_hundredth(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of 32 to 128 inputs here; the larger they are, the more the roundings average out."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    study = Study(network, renderings(tmp_path, network, FORMATS), part, FORMATS)
    monkeypatch.setattr(half_products, "multiplies_bf16", lambda: False)
    exact = kl_fisher.estimate(study).loss
    monkeypatch.setattr(half_products, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(half_products, "LARGE", 1)
    rounded = kl_fisher.estimate(study).loss
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert (rounded != exact).any()
