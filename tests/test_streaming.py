"""Streamed profiles: to the last bit those of the model in memory, in any order, by any number of workers, after any stop."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import models
from bitplan.allocator import Interrupted, ProfileRequest, UsageError, profile_model
from bitplan.allocator.hollow import Hollow, open_hollow
from bitplan.allocator.models import load
from bitplan.allocator.source import resolve
from bitplan.sensitivity import METRICS, hollow, streaming
from bitplan.sensitivity.calibration import Calibration, Part
from bitplan.sensitivity.estimate import Estimate
from bitplan.sensitivity.flow import Flow, estimate_flow
from bitplan.sensitivity.network import Network, task_objective
from bitplan.sensitivity.progress import silent
from bitplan.sensitivity.render import Renderings, Rounding
from bitplan.sensitivity.spill import Spill
from bitplan.sensitivity.streaming import Stream, Task, gathered, stream_estimate, tasks, tokens_by_unit
from bitplan.sensitivity.study import Study
from passes import Stopped, Watch, rewrite
from shelf import Shelf

KINDS = ("llama", "untied", "mixtral", "bert", "masked", "dinov2", "vit")
BATCHES, SEED = 3, 5
Floats = npt.NDArray[np.float64]


class Kept(dict[str, Floats]):
    """Steps that are kept, as a file of them would be."""

    def __call__(self, name: str, compute: Callable[[], Floats]) -> Floats:
        if name not in self:
            self[name] = compute()
        return self[name]


@dataclass(frozen=True)
class Case:
    """A model on disk, the same in memory, and a little data for both."""

    kind: str
    folder: Path
    home: Path

    @cached_property
    def network(self) -> Network:
        return load(resolve(str(self.folder)), self.home).network

    @property
    def hollow(self) -> Hollow:
        return open_hollow(resolve(str(self.folder)), self.home)

    @cached_property
    def calibration(self) -> Calibration:
        whole = models.calibration(self.kind)
        return replace(whole, render=models.fewer(whole.render, BATCHES), estimate=models.fewer(whole.estimate, BATCHES))

    @property
    def formats(self) -> tuple[str, ...]:
        return "int2-g32", "int4-g64-asym", self.network.inventory.units[0].native

    def renderings(self, home: Path, network: Network, rounding: Rounding) -> Renderings:
        return Renderings(home, network, rounding, self.calibration.render if rounding == "gptq" else None)

    def expected(self, flow: Flow, rounding: Rounding = "gptq") -> Estimate:
        """With the whole model in memory; estimated once, however many tests ask."""
        if (flow, rounding) not in self._estimates:
            self._estimates[flow, rounding] = self.estimate(flow, rounding, self.calibration.estimate)
        return self._estimates[flow, rounding]

    @cached_property
    def _estimates(self) -> dict[tuple[Flow, Rounding], Estimate]:
        return {}

    def estimate(self, flow: Flow, rounding: Rounding, part: Part) -> Estimate:
        made = self.renderings(self.home / "in memory", self.network, rounding)
        made.make([(unit, fmt) for unit in self.network.inventory.units for fmt in self.formats])
        return estimate_flow(flow, Study(self.network, made, part, self.formats, SEED))

    def stream(self, home: Path, flow: Flow, rounding: Rounding = "gptq", steps: Kept | None = None, part: Any = None) -> Stream:
        """A stream that knows nothing but what lies below `home` and in `steps`."""
        found = self.hollow
        made = self.renderings(home, found.loaded.network, rounding)
        spill, data = Spill(home / "spill"), part or self.calibration.estimate
        return Stream(found.chain, found.read, flow, made, data, self.formats, SEED, spill, Kept() if steps is None else steps)


@pytest.fixture(scope="module")
def case(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    home, made = tmp_path_factory.mktemp("home"), dict[str, Case]()
    return lambda kind: made.setdefault(kind, Case(kind, shelf.model(kind), home / kind))


def flow_of(metric: str) -> Flow:
    found: Flow = METRICS[metric].module.FLOW
    return found


KL, OUTPUT = flow_of("kl_fisher"), flow_of("output_error")


def equal(one: Estimate, other: Estimate) -> None:
    np.testing.assert_array_equal(one.loss, other.loss)
    assert one.stderr is not None
    assert other.stderr is not None
    np.testing.assert_array_equal(one.stderr, other.stderr)
    assert (one.batches, one.quantity, one.notes) == (other.batches, other.quantity, other.notes)
    assert np.nanmax(one.loss) > 0


def hold(stream: Stream, before: Estimate) -> None:
    """All of the work is done, with `before` as its result, and nothing of the model is left in memory."""
    equal(gathered(stream), before)
    assert all(parameter.is_meta for parameter in stream.chain.network.module.parameters())
    assert not any(module._forward_hooks for module in stream.chain.network.module.modules())


class TestTheTableIsThatOfTheModelInMemory:
    @pytest.mark.parametrize("kind", KINDS)
    def test_with_a_gradient(self, kind: str, case: Callable[[str], Case], tmp_path: Path) -> None:
        stream = case(kind).stream(tmp_path, KL)
        equal(stream_estimate(stream, silent), case(kind).expected(KL))
        hold(stream, case(kind).expected(KL))

    @pytest.mark.parametrize("kind", KINDS)
    def test_with_inputs_alone(self, kind: str, case: Callable[[str], Case], tmp_path: Path) -> None:
        equal(stream_estimate(case(kind).stream(tmp_path, OUTPUT), silent), case(kind).expected(OUTPUT))

    @pytest.mark.parametrize("flow", [KL, OUTPUT], ids=["gradient", "inputs"])
    @pytest.mark.parametrize("kind", ["llama", "mixtral"])
    def test_rounded_to_nearest(self, kind: str, flow: Flow, case: Callable[[str], Case], tmp_path: Path) -> None:
        found = stream_estimate(case(kind).stream(tmp_path, flow, "nearest"), silent)
        equal(found, case(kind).expected(flow, "nearest"))
        assert not np.array_equal(found.loss, case(kind).expected(flow).loss)

    @pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if metric.streams])
    def test_of_every_metric_that_streams(self, metric: str, case: Callable[[str], Case], tmp_path: Path) -> None:
        equal(stream_estimate(case("llama").stream(tmp_path, flow_of(metric)), silent), case("llama").expected(flow_of(metric)))

    def test_with_labels(self, case: Callable[[str], Case], tmp_path: Path) -> None:
        flow, part = replace(KL, objective=task_objective), case("vit").calibration.estimate
        labelled = replace(part, labels=tuple(torch.arange(len(batch["pixel_values"])) for batch in part.batches))
        found = stream_estimate(case("vit").stream(tmp_path, flow, part=labelled), silent)
        equal(found, case("vit").estimate(flow, "gptq", labelled))
        assert not np.array_equal(found.loss, case("vit").expected(flow).loss)

    def test_renderings_are_those_of_the_model_in_memory(self, case: Callable[[str], Case], tmp_path: Path) -> None:
        stream = case("mixtral").stream(tmp_path, OUTPUT)
        stream_estimate(stream, silent)
        case("mixtral").expected(OUTPUT)
        folders = stream.renderings.folder, case("mixtral").home / "in memory" / "renderings" / stream.renderings.folder.name
        ours, theirs = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
        assert ours == theirs
        assert len(ours) == 2 * len(case("mixtral").network.inventory.units)


class TestTasks:
    @pytest.fixture
    def llama(self, case: Callable[[str], Case]) -> Case:
        return case("llama")

    @pytest.mark.parametrize("rounding", ["gptq", "nearest"])
    @pytest.mark.parametrize("flow", [KL, OUTPUT], ids=["gradient", "inputs"])
    def test_each_comes_after_what_it_needs(self, flow: Flow, rounding: Rounding, llama: Case, tmp_path: Path) -> None:
        todo = tasks(llama.stream(tmp_path, flow, rounding))
        names = [task.name for task in todo]
        assert len(set(names)) == len(names)
        for index, task in enumerate(todo):
            assert set(task.needs) <= set(names[:index])
        kinds = Counter(name.rstrip("0123456789 ") for name in names)
        expected = {"estimate forward": 2, "render": 2, "render shell": 1, "sums": 2, "sums shell": 1}
        expected |= {"render forward": 2} if rounding == "gptq" else {}
        expected |= {"leave": 1, "backward": 2} if flow is KL else {}
        assert kinds == expected

    @pytest.mark.parametrize("order", [0, 1, "last first"])
    def test_any_order_will_do(self, order: int | str, llama: Case, tmp_path: Path) -> None:
        """What a task needs is all that it needs."""
        stream = llama.stream(tmp_path, KL)
        done = [task.name for task in in_another_order(tasks(stream), order)]
        assert done != [task.name for task in tasks(stream)]
        hold(stream, llama.expected(KL))

    @pytest.mark.parametrize("flow", [KL, OUTPUT], ids=["gradient", "inputs"])
    def test_two_workers_share_the_work(self, flow: Flow, llama: Case, tmp_path: Path) -> None:
        """Each with a model and a memory of its own; all that they share are files and steps."""
        steps = Kept()
        workers = [llama.stream(tmp_path, flow, steps=steps) for _ in range(2)]
        lists = [tasks(worker) for worker in workers]
        chosen = random.Random(1)
        for task in in_another_order(lists[0], 2, run=False):
            mine = next(one for one in lists[chosen.randrange(2)] if one.name == task.name)
            mine.run()
        assert all(worker.given for worker in workers)
        for worker in workers:
            hold(worker, llama.expected(flow))

    def test_a_task_done_twice_leaves_the_same(self, llama: Case, tmp_path: Path) -> None:
        stream = llama.stream(tmp_path, KL)
        for task in tasks(stream):
            task.run()
            task.run()
        hold(stream, llama.expected(KL))

    def test_progress_is_told_of_every_task(self, llama: Case, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        stream = llama.stream(tmp_path, OUTPUT, "nearest")
        count = len(tasks(stream))
        stream_estimate(stream, lambda *what: told.append(what))
        assert told == [("stream", done, count) for done in range(count + 1)]

    def test_what_was_not_done_cannot_be_gathered(self, llama: Case, tmp_path: Path) -> None:
        stream = llama.stream(tmp_path, OUTPUT, "nearest")
        for task in tasks(stream)[:-1]:
            task.run()
        with pytest.raises(KeyError, match="a task of the stream has not been done"):
            gathered(stream)

    def test_tokens_are_counted_as_the_router_counts_them(self, case: Callable[[str], Case], tmp_path: Path) -> None:
        from bitplan.sensitivity.routing import collect_routing

        llama, mixtral = (case(kind).stream(tmp_path / kind, OUTPUT, "nearest") for kind in ("llama", "mixtral"))
        for stream in (llama, mixtral):
            stream_estimate(stream, silent)
        network, part = case("mixtral").network, case("mixtral").calibration.estimate
        expected = collect_routing(network, part).unit_counts(network.inventory.units)
        np.testing.assert_array_equal(tokens_by_unit(mixtral), expected)
        assert len(set(expected.tolist())) > 5
        assert set(tokens_by_unit(llama).tolist()) == {float(expected.max())}


def in_another_order(todo: tuple[Task, ...], order: int | str, run: bool = True) -> Iterator[Task]:
    """The tasks in an order that their needs admit: drawn by a seed, or the last of those that are ready first."""
    sorter = TopologicalSorter({task.name: task.needs for task in todo})
    sorter.prepare()
    ready, by_name, position = list[str](), {task.name: task for task in todo}, {task.name: i for i, task in enumerate(todo)}
    chance = random.Random(order)
    while sorter.is_active():
        ready += sorter.get_ready()
        name = max(ready, key=position.__getitem__) if order == "last first" else chance.choice(ready)
        ready.remove(name)
        if run:
            by_name[name].run()
        yield by_name[name]
        sorter.done(name)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


class TestInterrupted:
    """Blocks are passed through by forward (2 x 2 parts), render, backward and sums: 10 tasks of 3 batches, 10 openings."""

    PASSES, OPENINGS = 10 * BATCHES, 10

    @pytest.fixture
    def llama(self, case: Callable[[str], Case]) -> Case:
        return case("llama")

    def test_the_work_of_one_go(self, llama: Case, watch: Watch, tmp_path: Path) -> None:
        stream_estimate(llama.stream(tmp_path, KL), silent)
        assert (watch.passed, watch.blocks) == (self.PASSES, self.OPENINGS)
        assert watch.opened[""] == 5  # to enter, once a part; to leave; rendered; summed

    @pytest.mark.parametrize("after", [0, 1, 3, 5, 7, 8, 9, 10, 12])
    def test_no_finished_task_is_done_again(self, after: int, llama: Case, watch: Watch, tmp_path: Path) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            assert total == 13
            if done == after:
                raise Interrupted

        steps = Kept()
        with pytest.raises(Interrupted):
            stream_estimate(llama.stream(tmp_path, KL, steps=steps), stop)
        again = llama.stream(tmp_path, KL, steps=steps)
        equal(stream_estimate(again, silent), llama.expected(KL))
        assert (watch.passed, watch.blocks) == (self.PASSES, self.OPENINGS)
        before = watch.passed, watch.blocks
        stream_estimate(llama.stream(tmp_path, KL, steps=steps), silent)
        assert (watch.passed, watch.blocks) == before

    @pytest.mark.parametrize("at", [0, 4, 7, 19, 23, 28])
    def test_an_exception_inside_a_task_costs_that_task_at_most(self, at: int, llama: Case, watch: Watch, tmp_path: Path) -> None:
        steps, watch.stop = Kept(), at
        stream = llama.stream(tmp_path, KL, steps=steps)
        with pytest.raises(Stopped):
            stream_estimate(stream, silent)
        assert watch.passed == at
        assert all(parameter.is_meta for parameter in stream.chain.network.module.parameters())
        assert not any(module._forward_hooks for module in stream.chain.network.module.modules())
        again = stream if at % 2 else llama.stream(tmp_path, KL, steps=steps)  # the same process may go on too
        equal(stream_estimate(again, silent), llama.expected(KL))
        assert self.PASSES <= watch.passed < self.PASSES + BATCHES
        assert watch.blocks == self.OPENINGS + 1

    def test_batches_that_went_forward_need_not_go_again(self, llama: Case, watch: Watch, tmp_path: Path) -> None:
        steps, watch.stop = Kept(), 2
        with pytest.raises(Stopped):
            stream_estimate(llama.stream(tmp_path, KL, steps=steps), silent)
        stream_estimate(llama.stream(tmp_path, KL, steps=steps), silent)
        assert watch.passed == self.PASSES

    def test_only_one_block_or_the_shell_is_ever_open(self, llama: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from contextlib import contextmanager

        opened, now = hollow.opened, list[str]()

        @contextmanager
        def alone(chain: Any, read: Any, path: str) -> Iterator[None]:
            assert not now
            now.append(path)
            with opened(chain, read, path):
                yield
            now.remove(path)

        monkeypatch.setattr(streaming, "opened", alone)
        steps = Kept()
        for task in tasks(llama.stream(tmp_path, KL, steps=steps)):  # a fresh memory for every task
            next(one for one in tasks(llama.stream(tmp_path, KL, steps=steps)) if one.name == task.name).run()


class TestWhatIsNoNumber:
    def flow(self, change: Callable[[Tensor], Tensor]) -> Flow:
        return replace(KL, objective=lambda network, output, *rest: change(output))

    def test_gradients(self, case: Callable[[str], Case], tmp_path: Path) -> None:
        flow = self.flow(lambda output: (output.clamp(max=0).square().sum() * 0).sqrt())  # 0 / 0
        with pytest.raises(ValueError, match=r"the gradient of the objective is NaN or infinite; check the weights and the cali"):
            stream_estimate(case("llama").stream(tmp_path, flow, "nearest"), silent)

    def test_a_model_whose_blocks_do_not_matter(self, case: Callable[[str], Case], tmp_path: Path) -> None:
        flow = self.flow(lambda output: torch.ones((), requires_grad=True))
        with pytest.raises(ValueError, match=r"no gradient of the objective reaches the blocks.*; leave --stream out"):
            stream_estimate(case("llama").stream(tmp_path, flow, "nearest"), silent)

    @pytest.mark.parametrize("rounding", ["nearest", "gptq"])
    @pytest.mark.parametrize("metric", ["kl_fisher", "output_error"])
    @pytest.mark.parametrize(
        ("name", "culprit"),
        [("model.layers.0.mlp.down_proj.weight", "what leaves 'model.layers.0'"), ("model.norm.weight", "the model's output")],
    )
    def test_hidden_states(self, name: str, culprit: str, metric: str, rounding: str, shelf: Shelf, tmp_path: Path) -> None:
        """Weights that are finite, and too large to add up."""
        if (name, metric) == ("model.norm.weight", "output_error"):
            culprit = "what flows through unit 'model.embed_tokens'"
        folder = shutil.copytree(shelf.model("llama"), tmp_path / "model")
        rewrite(folder, lambda state: state[name].fill_(3e38))
        request = ProfileRequest(str(folder), metric, ("int4-g64",), str(shelf.text), 256, rounding=rounding, stream=True)
        with pytest.raises(UsageError, match=f"{culprit} is NaN or infinite; check the weights and the calibration data"):
            profile_model(request, home=tmp_path / "home")
