"""The metrics that measure: each against a plain loop over changed copies, and their scores against closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.measured import Trial, make_bench, measure_alone, stored, summed_divergence
from bitplan.sensitivity.metrics import content, cosine, cross_entropy, divergence, top1
from bitplan.sensitivity.network import Batch, Network, run
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.units import Matrix, Unit

FORMATS = ("int3-g32-asym", "int5-row")
PADDING = 5


def made_for(network: Network, home: Path) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    return made


def setting(kind: str, home: Path, batches: int = 2) -> tuple[Network, Part, Renderings]:
    """Where there are tokens, the end of the first window of each batch is padding."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, batches)
    return network, padded(part) if network.inventory.outputs == "tokens" else part, made_for(network, home)


def padded(part: Part) -> Part:
    made = []
    for batch in part.batches:
        mask = torch.ones_like(batch["input_ids"])
        mask[0, -PADDING:] = 0
        made.append({**batch, "attention_mask": mask})
    return Part(tuple(made), part.digests)


@torch.no_grad()
def changed_outputs(network: Network, part: Part, made: Renderings) -> Iterator[tuple[int, int, list[Tensor]]]:
    """(u, f, outputs) of changed copies of the network, for every fourth unit."""
    for u, unit in list(enumerate(network.inventory.units))[::4]:
        for f, fmt in enumerate(FORMATS):
            other = copy.deepcopy(network.module)
            for matrix, rendered in zip(unit.matrices, made(unit, fmt), strict=True):
                weight = other.get_parameter(f"{matrix.module}.weight")
                weight.data = rendered_transposed(rendered).T.reshape(weight.shape)
            yield u, f, [run(network, batch, other) for batch in part.batches]


def expected(network: Network, part: Part, made: Renderings, loss: Callable[[Batch, Tensor, Tensor], float]) -> list[Any]:
    """(u, f, sum over batches of `loss(batch, before, after)`)."""
    with torch.no_grad():
        before = [run(network, batch) for batch in part.batches]
    return [
        (u, f, sum(loss(batch, x, y) for batch, x, y in zip(part.batches, before, after, strict=True)))
        for u, f, after in changed_outputs(network, part, made)
    ]


def estimate(metric: Any, network: Network, made: Renderings, part: Part) -> Any:
    return metric.estimate(Study(network, made, part, FORMATS))


# --- the bench


def test_several_units_are_stored_at_once_and_put_back(tmp_path: Path) -> None:
    network, _, made = setting("mixtral", tmp_path)
    pairs = [(unit, FORMATS[u % 2]) for u, unit in enumerate(network.inventory.units)]
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    with stored(network, made, pairs):
        for unit, fmt in pairs:
            for weight, rendered in zip(unit_weights(network.module, unit), made(unit, fmt), strict=True):
                assert torch.equal(weight, rendered_transposed(rendered).T)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_nothing_stored_loses_nothing(tmp_path: Path) -> None:
    network, part, made = setting("bert", tmp_path)
    assert make_bench(Study(network, made, part, FORMATS)).sums(summed_divergence, []).tolist() == [0, 0]


def test_an_error_in_a_score_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    network, part, made = setting("llama", tmp_path)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}

    def fail(trial: object) -> float:
        assert any(not torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
        raise InterruptedError

    with pytest.raises(InterruptedError):
        measure_alone(make_bench(Study(network, made, part, FORMATS)), fail)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_an_output_that_is_not_finite_is_named(tmp_path: Path) -> None:
    network, part, made = setting("llama", tmp_path)
    bench = make_bench(Study(network, made, part, FORMATS))
    unit = network.inventory.units[3]

    def overflow(trial: Trial) -> float:
        return float("nan") if trial.batch is part.batches[1] else 1.0

    with pytest.raises(ValueError, match=f"output is NaN or infinite with {unit.name} in int5-row; check the weights"):
        bench.sums(overflow, [(unit, "int5-row")])


# --- cross_entropy


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_increase_of_the_loss_on_the_next_token(kind: str, tmp_path: Path) -> None:
    network, part, made = setting(kind, tmp_path)

    def increase(batch: Batch, before: Tensor, after: Tensor) -> float:
        total = 0.0
        for example, ids in enumerate(batch["input_ids"]):
            for t in range(len(ids) - 1):
                if batch["attention_mask"][example, t + 1]:
                    x, y = (output[example, t].double().log_softmax(-1)[ids[t + 1]] for output in (before, after))
                    total += float(x - y)
        return total

    found = estimate(cross_entropy, network, made, part)
    count = sum(batch["input_ids"].numel() - len(batch["input_ids"]) - PADDING for batch in part.batches)
    wanted = expected(network, part, made, increase)
    assert any(total < 0 for _, _, total in wanted)  # this network knows no English: some changes do it good
    for u, f, total in wanted:
        assert found.loss[u, f] == pytest.approx(max(0.0, total / count), rel=1e-3, abs=1e-7)
    assert found.quantity == "increase of the cross entropy, nats per token"
    assert any("were negative and are set to zero" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["vit", "residual"])
def test_the_increase_of_the_loss_on_labelled_images(kind: str, tmp_path: Path) -> None:
    network, part, made = setting(kind, tmp_path)
    labels = tuple(torch.arange(len(batch["pixel_values"])) % 10 for batch in part.batches)
    labelled = Part(part.batches, part.digests, labels)
    classes = {id(batch): label for batch, label in zip(part.batches, labels, strict=True)}

    def increase(batch: Batch, before: Tensor, after: Tensor) -> float:
        losses = [functional.cross_entropy(output.double(), classes[id(batch)], reduction="sum") for output in (before, after)]
        return float(losses[1] - losses[0])

    found = estimate(cross_entropy, network, made, labelled)
    for u, f, total in expected(network, part, made, increase):
        assert found.loss[u, f] == pytest.approx(max(0.0, total / part.examples), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("kind", ["bert", "masked", "residual"])
def test_without_labels_it_is_the_divergence(kind: str, tmp_path: Path) -> None:
    network, part, made = setting(kind, tmp_path)
    found, truth = estimate(cross_entropy, network, made, part), estimate(divergence, network, made, part)
    assert found.loss.tobytes() == truth.loss.tobytes()
    assert found.quantity == network.quantity
    assert "no labels" in found.notes[0]
    assert truth.notes == ()


def test_labels_beyond_the_models_classes_are_none(tmp_path: Path) -> None:
    network, part, made = setting("residual", tmp_path)
    labels = tuple(torch.full((len(batch["pixel_values"]),), 10) for batch in part.batches)
    found = estimate(cross_entropy, network, made, Part(part.batches, part.digests, labels))
    assert "no labels" in found.notes[0]


# --- cosine


@pytest.mark.parametrize("kind", ["llama", "masked", "resnet"])
def test_the_cosine_distance_of_logits(kind: str, tmp_path: Path) -> None:
    network, part, made = setting(kind, tmp_path)

    def distance(batch: Batch, before: Tensor, after: Tensor) -> float:
        each = 1 - functional.cosine_similarity(before.double(), after.double(), dim=-1)
        return float(each[batch["attention_mask"].bool()].sum() if "attention_mask" in batch else each.sum())

    found = estimate(cosine, network, made, part)
    count = sum(int(batch["attention_mask"].sum()) if kind != "resnet" else len(batch["pixel_values"]) for batch in part.batches)
    for u, f, total in expected(network, part, made, distance):
        assert found.loss[u, f] == pytest.approx(total / count, rel=1e-4)
        assert found.loss[u, f] > 0


def test_the_cosine_distance_of_pooled_vectors_is_their_divergence(tmp_path: Path) -> None:
    network, part, made = setting("dinov2", tmp_path)
    assert estimate(cosine, network, made, part).loss == pytest.approx(estimate(divergence, network, made, part).loss, rel=1e-4)


# --- top1


def test_what_changes_and_what_nearly_does() -> None:
    before = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.5]])
    after = torch.tensor([[1.0, 2.0, 0.0], [0.0, 2.5, 1.5], [0.75, 0.0, 0.5]])
    assert top1.changes(before, after) == 1
    # margins 2, 1, 0.5; their changes -3, 0, -0.25
    assert top1.near_changes(before, after) == pytest.approx((9 / 13 + 0 + 0.0625 / 0.3125) / 3)
    assert top1.near_changes(before, before) == 0
    assert top1.near_changes(torch.ones(2, 3), torch.ones(2, 3)) == 0  # no margin and no change


@pytest.mark.parametrize("kind", ["llama", "masked", "vit"])
def test_the_share_of_first_choices_that_change(kind: str, tmp_path: Path) -> None:
    network, part, made = setting(kind, tmp_path)

    def score(batch: Batch, before: Tensor, after: Tensor) -> float:
        rows = [(x, y) for x, y in zip(before.flatten(0, -2), after.flatten(0, -2), strict=True)]
        if "attention_mask" in batch:
            rows = [row for row, keep in zip(rows, batch["attention_mask"].flatten(), strict=True) if keep]
        flips, near = 0, 0.0
        for x, y in rows:
            first, second = x.argsort(descending=True)[:2]
            margin, moved = float(x[first] - x[second]), float(y[first] - y[second])
            flips += int(y.argmax() != first)
            near += (moved - margin) ** 2 / ((moved - margin) ** 2 + margin**2)
        counts.append(len(rows) + 1)
        return flips + near / len(rows)

    counts: list[int] = []
    found = estimate(top1, network, made, part)
    wanted = expected(network, part, made, score)
    for u, f, total in wanted:
        assert found.loss[u, f] == pytest.approx(total / sum(counts[:2]), rel=1e-4)
        assert 0 < found.loss[u, f] < 1
    assert found.quantity == "share of first choices changed"


def test_the_share_of_nearest_neighbours_that_change(tmp_path: Path) -> None:
    """The neighbours are the untouched vectors of all other examples of the part, of other batches too."""
    network, part, made = setting("dinov2", tmp_path, batches=4)
    with torch.no_grad():
        index = torch.cat([run(network, batch) for batch in part.batches])
    flips: dict[tuple[int, int], int] = {}
    for u, f, outputs in changed_outputs(network, part, made):
        flips[u, f] = 0
        for example, vector in enumerate(torch.cat(outputs)):
            others = [other for other in range(len(index)) if other != example]
            nearest = [others[int((index[others] @ one).argmax())] for one in (index[example], vector)]
            flips[u, f] += nearest[0] != nearest[1]
    found = estimate(top1, network, made, part)
    assert found.quantity == "share of nearest neighbours changed"
    assert sum(flips.values()) > 0
    for (u, f), count in flips.items():
        assert count / 12 <= found.loss[u, f] <= (count + 4) / 12  # eight examples, and one added for each of four batches


def test_a_neighbour_needs_three_examples(tmp_path: Path) -> None:
    network, part, made = setting("dinov2", tmp_path, batches=1)
    assert part.examples == 2
    with pytest.raises(ValueError, match="needs 3 examples or more; the data has 2"):
        estimate(top1, network, made, part)


# --- content


def ssim(x: Any, y: Any) -> float:
    """As it is printed."""
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    span = x.max() - x.min()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    levels = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
    return float(levels * (2 * covariance + c2) / (x.var() + y.var() + c2))


def test_dissimilarity_is_one_less_ssim() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 11) + 3
    for y in (x + 0.1 * torch.randn(7, 11), -x, 2 * x, x + 1):
        assert content.dissimilarity(x, y) == pytest.approx(1 - ssim(x, y), rel=1e-6)
    assert content.dissimilarity(x, x) == 0
    assert content.dissimilarity(torch.ones(3), torch.ones(3)) == 0
    assert content.dissimilarity(torch.ones(3), torch.ones(3) * 2) == pytest.approx(1 / 5)  # levels 1 and 2, no structure
    small = content.dissimilarity(x.double(), x.double() + 1e-9 * torch.randn(7, 11).double())
    assert 0 < small < 1e-17  # which one less SSIM could not tell from zero


def test_noise_to_signal_is_sqnr() -> None:
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])
    assert content.noise_to_signal(x, y) == 0.25 / 25
    assert -10 * math.log10(content.noise_to_signal(x, y)) == pytest.approx(20)
    assert content.noise_to_signal(torch.zeros(2), torch.zeros(2)) == 0
    assert content.noise_to_signal(torch.zeros(2), torch.ones(2)) == 1


@pytest.mark.parametrize("kind", ["masked", "residual"])
def test_each_group_has_its_own_loss(kind: str, tmp_path: Path) -> None:
    network, part, made = setting(kind, tmp_path)
    tables = {}
    for name in ("ssim", "noise"):

        def loss(batch: Batch, before: Tensor, after: Tensor, name: str = name) -> float:
            total = 0.0
            for example, (x, y) in enumerate(zip(before.double(), after.double(), strict=True)):
                if "attention_mask" in batch:
                    x, y = (one[batch["attention_mask"][example].bool()] for one in (x, y))
                total += 1 - ssim(x, y) if name == "ssim" else float((y - x).square().sum() / x.square().sum())
            return total

        tables[name] = expected(network, part, made, loss)
    found = estimate(content, network, made, part)
    units = network.inventory.units
    kinds = set()
    for (u, f, structure), (_, _, noise) in zip(tables["ssim"], tables["noise"], strict=True):
        kinds.add(content.is_content(units[u]))
        wanted = structure if content.is_content(units[u]) else noise
        assert found.loss[u, f] == pytest.approx(wanted / part.examples, rel=1e-3)
    assert kinds == ({False, True} if kind == "masked" else {False})  # a convolutional network has no feed-forward layers
    assert "not stand on one scale" in found.notes[0]


def test_which_units_decide_on_content() -> None:
    def unit(name: str, role: str) -> Unit:
        return Unit(name, "linear", role, (Matrix(name, (4, 4)),), "fp32", 0)

    content_units = [
        unit("down_blocks.0.ff.net.2", "other"),
        unit("down_blocks.0.attn2.to_k", "other"),
        unit("decoder.layers.0.encoder_attn.k_proj", "k"),
        unit("encoder.block.1.layer.1.EncDecAttention.q", "q"),
        unit("h.0.mlp.c_fc", "up"),
        unit("layers.0.experts.3", "expert"),
    ]
    assert all(content.is_content(unit) for unit in content_units)
    others = [("down_blocks.0.attn1.to_k", "other"), ("conv_in", "conv"), ("lm_head", "head"), ("layers.0.self_attn.o_proj", "o")]
    assert not any(content.is_content(unit(name, role)) for name, role in others)


@pytest.mark.parametrize(
    ("k", "quality", "for_content"),
    [(0.46, 7.39645, 3.40237), (0.76, 5.84112, 4.43925), (1.06, 4.82625, 5.11583), (1.36, 4.11184, 5.59211)],
)
def test_the_published_split_of_the_budget(k: float, quality: float, for_content: float) -> None:
    found = content.split_budget(5, 1.5, k)
    assert found == pytest.approx((quality, for_content), abs=5e-6)
    assert (found[0] + 1.5 * found[1]) / 2.5 == pytest.approx(5)  # the mean over both groups is kept


def test_the_splits_that_are_tried() -> None:
    splits = content.candidate_splits(5, 1.5)
    assert 0 < len(splits) <= 100
    assert any(split == pytest.approx((7.39645, 3.40237), abs=5e-6) for split in splits)
    assert all(4 <= quality <= 8 and 2 <= for_content <= 8 for quality, for_content in splits)
    assert all(4.7 - 1e-9 <= (quality + 1.5 * for_content) / 2.5 <= 5 + 1e-9 for quality, for_content in splits)
    assert content.candidate_splits(9, 1.0) == []


def test_what_a_score_is_given(tmp_path: Path) -> None:
    """One batch a trial with its own labels and outputs; its network holds the changed weights."""
    network, part, made = setting("vit", tmp_path)
    labels = tuple(torch.full((len(batch["pixel_values"]),), index) for index, batch in enumerate(part.batches))
    bench = make_bench(Study(network, made, replace(part, labels=labels), FORMATS))
    trials: list[Trial] = []
    unit = network.inventory.units[1]

    def keep(trial: Trial) -> float:
        trials.append(trial)
        return len(trials)

    assert bench.sums(keep, [(unit, FORMATS[0])]).tolist() == [1, 2]
    for index, trial in enumerate(trials):
        assert trial.changed == (unit,)
        assert trial.batch is part.batches[index]
        assert trial.labels is labels[index]
        with torch.no_grad():
            assert torch.equal(trial.reference, run(network, trial.batch))
        assert not torch.equal(trial.reference, trial.output)
