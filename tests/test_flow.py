from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from bitplan.sensitivity import METRICS
from bitplan.sensitivity.flow import Flow, Passage, batch_sums, estimate_flow, scalar_of
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.progress import compute_always
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.report import Floats
from bitplan.sensitivity.study import Study

FORMATS = ("int4-g64", "bf16", "fp32")


@pytest.fixture(scope="module")
def network() -> Network:
    return models.network("llama")


def passage(network: Network) -> Passage:
    return Passage(network, None, network.inventory.units, FORMATS, {}, lambda visit: None)  # type: ignore[arg-type]


def table(network: Network) -> Floats:
    """Ones; a model in bfloat16 has no float32."""
    return np.where(np.array(FORMATS) == "fp32", np.nan, np.ones((len(network.inventory.units), len(FORMATS))))


def test_a_table_of_numbers_passes(network: Network) -> None:
    np.testing.assert_array_equal(batch_sums(Flow(lambda _: table(network)), passage(network)), table(network))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_by_the_name_of_its_unit(value: float, network: Network) -> None:
    wrong = table(network)
    wrong[5, 0] = wrong[7, 0] = value
    name = network.inventory.units[5].name
    with pytest.raises(ValueError, match=f"flows through unit '{name}' is NaN or infinite; check the weights and the cali"):
        batch_sums(Flow(lambda _: wrong), passage(network))


def test_only_formats_that_a_unit_cannot_have_may_have_no_number(network: Network) -> None:
    wrong = table(network)
    wrong[:, 2] = np.inf  # whatever it is, nobody reads it
    batch_sums(Flow(lambda _: wrong), passage(network))
    wrong[0, 1] = np.nan
    with pytest.raises(ValueError, match=network.inventory.units[0].name):
        batch_sums(Flow(lambda _: wrong), passage(network))


@pytest.mark.parametrize(("value", "refused"), [(np.nan, True), (np.inf, True), (-np.inf, False)])
def test_an_output_that_is_no_number_is_refused(value: float, refused: bool, network: Network) -> None:
    """But for minus infinity, by which a model may ban a word."""
    output = torch.zeros(2, 3, 4, requires_grad=True)
    changed = output + torch.zeros(4).index_fill_(0, torch.tensor([1]), value)

    def objective(network: Network, output: Tensor, *rest: object) -> Tensor:
        return output[..., 0].sum()

    if refused:
        with pytest.raises(ValueError, match="the model's output is NaN or infinite; check the weights and the calibration data"):
            scalar_of(objective, network, changed, {}, None, 0)
    else:
        assert scalar_of(objective, network, changed, {}, None, 0).item() == 0


@pytest.mark.parametrize("objective", [True, False])
def test_a_model_that_overflows_is_refused(objective: bool, tmp_path: Path) -> None:
    network = models.network("llama")
    network.module.get_parameter("model.norm.weight").fill_(3e38)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, "int4-g64") for unit in network.inventory.units])
    flow: Flow = METRICS["kl_fisher" if objective else "output_error"].module.FLOW
    part = models.fewer(models.calibration("llama").estimate, 2)
    what = "the model's output" if objective else "what flows through unit 'model.embed_tokens'"
    with pytest.raises(ValueError, match=f"{what} is NaN or infinite"):
        estimate_flow(flow, Study(network, made, part, ("int4-g64",)))
    assert not any(module._forward_hooks for module in network.module.modules())


def test_batches_are_averaged_by_their_predictions(network: Network) -> None:
    """And each is one step of its own."""
    part = models.calibration("llama").estimate
    part = replace(part, batches=(part.batches[0], {"input_ids": part.batches[1]["input_ids"][:, :8]}))
    names: list[str] = []

    def steps(name: str, compute: object) -> Floats:
        names.append(name)
        return compute_always(name, compute)  # type: ignore[arg-type]

    flow = Flow(lambda passage: table(network) * (passage.batch["input_ids"].numel() == 8), quantity="things")
    found = estimate_flow(flow, Study(network, None, part, FORMATS, steps=steps))  # type: ignore[arg-type]
    assert names == ["batch 0", "batch 1"]
    assert found.quantity == "things"
    np.testing.assert_allclose(found.loss[:, 0], 1 / (8 + part.batches[0]["input_ids"].numel()))
