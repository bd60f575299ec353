from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import kfac
from bitplan.sensitivity.network import Network, predictions, sampled_objective
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.study import Study
from loops import Moved, changes, renderings, rows, seen

Floats = npt.NDArray[np.float64]
FORMATS = ("int3-g32-asym", "int4-g64")


def estimate(network: Network, made: Any, part: Part, seed: int = 3, formats: tuple[str, ...] = FORMATS) -> Floats:
    loss: Floats = kfac.estimate(Study(network, made, part, formats, seed)).loss
    return loss


def slow_estimate(network: Network, made: Any, part: Part) -> Floats:
    """A and G of every use as matrices, row by row, then tr(G dW A dW^T) / 2NR; lookups as one-hot rows."""
    factors: dict[tuple[str, int, str], list[Any]] = {}
    for index, batch in enumerate(part.batches):
        generator = torch.Generator().manual_seed(3 + index)
        labels = part.classes(index)
        for one in seen(network, batch, lambda output: sampled_objective(network, output, batch, labels, generator)):  # noqa: B023
            x, g = rows(one)
            mine = factors.setdefault((one.use.unit.name, one.use.matrix, one.use.module), [0.0, 0.0, 0])
            mine[0], mine[1], mine[2] = mine[0] + x.T @ x, mine[1] + g.T @ g, mine[2] + len(x)
    total = np.zeros((len(network.inventory.units), len(FORMATS)))
    for u, unit in enumerate(network.inventory.units):
        for f, fmt in enumerate(FORMATS):
            moves = changes(network, made, unit, fmt)
            for (name, matrix, _), (a, g, count) in factors.items():
                if name == unit.name:
                    total[u, f] += float(torch.trace(g @ moves[matrix] @ a @ moves[matrix].T)) / count
    return np.asarray(total / (2 * sum(predictions(network, batch) for batch in part.batches)))


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "vit", "dinov2", "residual"])
def test_it_is_the_formula(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    found = kfac.estimate(Study(network, made, part, FORMATS, 3))
    assert found.loss == pytest.approx(slow_estimate(network, made, part), rel=1e-3)
    assert found.quantity == network.quantity
    assert found.stderr is not None
    assert bool((found.stderr > 0).all())


def linear(inputs: int, outputs: int) -> Network:
    torch.manual_seed(0)
    module = make_plain(nn.Sequential(nn.Linear(inputs, outputs, bias=False)))
    return Network(module, take_inventory(module, model_id="m", family="vision", outputs="classes"))


def send_back(monkeypatch: pytest.MonkeyPatch, gradients: dict[int, Tensor]) -> None:
    """Let the gradient at the output be what stands here for the batch of so many examples."""

    def objective(network: Network, output: Tensor, batch: Any, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        return (gradients[len(output)] * output).sum()

    monkeypatch.setattr(kfac, "sampled_objective", objective)


def test_every_input_with_every_gradient_is_the_form_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where x and g are independent nothing is neglected: 1/(2N) sum_r (g_r^T dW x_r)^2, in batches that are not."""
    network = linear(5, 4)
    x, g = torch.randn(6, 5), torch.randn(7, 4)
    pairs = [(a, b) for a in x for b in g]
    xs, gs = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    cuts = (slice(0, 10), slice(10, 31), slice(31, 42))
    batches = tuple({"pixel_values": xs[some]} for some in cuts)
    send_back(monkeypatch, {len(gs[some]): gs[some] for some in cuts})
    delta = 0.1 * torch.randn(4, 5)
    found = estimate(network, Moved(network, {"0": [delta]}), Part(batches, frozenset("a")), formats=("int4-row",))
    exact = float(((gs @ delta) * xs).sum(1).double().square().sum()) / (2 * len(pairs))
    assert found[0, 0] == pytest.approx(exact, rel=1e-5)


def test_inputs_that_go_with_their_gradients_are_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large x with small g and small x with large g: x = 1, 3; g = 3, 1; dW = 1: by rows (9 + 9) / 4, factored 10 * 10 / 8."""
    network = linear(2, 2)
    send_back(monkeypatch, {2: torch.tensor([[3.0, 0.0], [1.0, 0.0]])})
    part = Part(({"pixel_values": torch.tensor([[1.0, 0.0], [3.0, 0.0]])},), frozenset("a"))
    made = Moved(network, {"0": [torch.tensor([[1.0, 0.0], [0.0, 0.0]])]})
    assert estimate(network, made, part, formats=("int4-row",))[0, 0] == pytest.approx(10 * 10 / 2 / 4, rel=1e-6)


def grouped() -> Network:
    """24 and 40 outputs a group: slices of 32 rows cross the groups."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.Tanh(), nn.Conv2d(8, 48, (2, 3), groups=2, padding=(0, 1)), nn.Tanh())
    end = (nn.Conv2d(48, 80, 1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 6))
    module = make_plain(nn.Sequential(*layers, *end))
    return Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))


def test_groups_of_a_convolution_are_matrices_of_their_own(tmp_path: Path) -> None:
    """Each group's patches and gradients, position by position, by slicing what the module received and gave."""
    network, part = grouped(), models.fewer(models.calibration("resnet").estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    found = estimate(network, made, part)
    unit = network.inventory.units[1]
    a, g, count = [torch.zeros(24, 24).double() for _ in range(2)], [torch.zeros(24, 24).double() for _ in range(2)], 0
    for index, batch in enumerate(part.batches):
        generator = torch.Generator().manual_seed(3 + index)
        for one in seen(network, batch, lambda output: sampled_objective(network, output, batch, None, generator)):  # noqa: B023
            if one.use.unit.name != unit.name:
                continue
            padded = nn.functional.pad(one.received, (1, 1, 0, 0)).double()
            height, width = one.gradient.shape[2:]
            for i in range(height):
                for j in range(width):
                    count += len(padded)
                    for group in range(2):
                        x = padded[:, 4 * group : 4 * group + 4, i : i + 2, j : j + 3].flatten(1)
                        mine = one.gradient[:, 24 * group : 24 * group + 24, i, j].double()
                        a[group] += x.T @ x
                        g[group] += mine.T @ mine
    for f, fmt in enumerate(FORMATS):
        moves = changes(network, made, unit, fmt)[0].view(2, 24, 24)
        total = sum(float(torch.trace(g[k] @ moves[k] @ a[k] @ moves[k].T)) for k in range(2))
        assert found[1, f] == pytest.approx(total / count / (2 * part.examples), rel=1e-3)


def test_chunks_are_whole_layers_within_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    assert len(kfac.chunks(network)) == 1
    whole = kfac.estimate(Study(network, made, part, FORMATS, 3))
    layer = 4 * (4 * 64**2 + 4 * (64**2 + 48**2))  # attention's four inputs and each expert's two
    monkeypatch.setattr(kfac, "CACHE_BYTES", layer)
    pieces = kfac.chunks(network)
    assert [unit for piece in pieces for unit in piece] == list(network.inventory.units)
    assert [{unit.layer for unit in piece} for piece in pieces] == [{None}, {0}, {1}, {None}]
    names: list[str] = []

    def steps(name: str, compute: Any) -> Floats:
        names.append(name)
        return np.asarray(compute())

    found = kfac.estimate(Study(network, made, part, FORMATS, 3, steps))
    assert len(set(names)) == len(names) == 4 * 2
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert found.stderr == pytest.approx(whole.stderr, rel=1e-3, abs=1e-6 * float(whole.loss.max()))
    monkeypatch.setattr(kfac, "CACHE_BYTES", 2 * layer)
    assert [{unit.layer for unit in piece} for piece in kfac.chunks(network)] == [{None, 0}, {1, None}]
    monkeypatch.setattr(kfac, "CACHE_BYTES", 1)  # more than that is held where a layer needs it
    assert len(kfac.chunks(network)) == 4


def test_inputs_are_not_collected_where_every_step_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = models.network("vit"), models.fewer(models.calibration("vit").estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    kept: dict[str, Floats] = {}

    def steps(name: str, compute: Any) -> Floats:
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    first = kfac.estimate(Study(network, made, part, FORMATS, 3, steps))
    monkeypatch.setattr(kfac, "input_factors", lambda *_: pytest.fail("collected"))
    assert kfac.estimate(Study(network, made, part, FORMATS, 3, steps)).loss.tobytes() == first.loss.tobytes()


def test_standard_errors_are_those_of_leaving_batches_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact where the batches' A are multiples of one: the jackknife by estimating anew without each batch."""
    network, x = linear(5, 4), torch.randn(9, 5)
    gradients = {n: torch.randn(n, 4) for n in (9, 18, 27, 36)}
    send_back(monkeypatch, gradients)
    batches = [{"pixel_values": (1 + 0.3 * n) * x.repeat(n, 1)} for n in (1, 2, 3, 4)]
    made: Any = Moved(network, {"0": [0.1 * torch.randn(4, 5)]})

    def of(some: list[dict[str, Tensor]]) -> Any:
        return kfac.estimate(Study(network, made, Part(tuple(some), frozenset("a")), ("int4-row",)))

    without = np.array([of(batches[:b] + batches[b + 1 :]).loss[0, 0] for b in range(4)])
    expected = (3 / 4 * np.square(without - without.mean()).sum()) ** 0.5
    assert of(batches).stderr[0, 0] == pytest.approx(expected, rel=1e-4)
    assert of(batches[:1]).stderr is None


def test_padding_has_no_part(tmp_path: Path) -> None:
    network = models.network("masked")
    made, ids = renderings(tmp_path, network, FORMATS), torch.arange(1, 8)[None]
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {name: nn.functional.pad(tensor, (0, 5)) for name, tensor in alone.items()}  # labels of the first are the same
    tables = [estimate(network, made, Part((batch,), frozenset("a"))) for batch in (alone, padded)]
    assert tables[1] == pytest.approx(tables[0], rel=1e-3)


def test_an_expert_that_few_tokens_reach_or_none(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 0)
    part, made = models.fewer(models.calibration("mixtral").estimate, 3), renderings(tmp_path, network, FORMATS)
    rare = replace(part, batches=(part.batches[0], {"input_ids": torch.tensor([[1]])}, {"input_ids": torch.tensor([[2]])}))
    for data in (part, rare):
        found = kfac.estimate(Study(network, made, data, FORMATS))
        assert found.stderr is not None
        assert bool(np.isfinite(found.stderr).all())
        for u, unit in enumerate(network.inventory.units):
            assert bool((found.loss[u] == 0).all()) is (unit.expert == 0)
