"""Streamed profiles: to the last bit those of the model in memory, in any order, by any number of workers, after any stop."""

from __future__ import annotations

import math
import random
import shutil
import signal
import subprocess
import sys
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
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from bitplan.allocator import Interrupted, ModelError, ProfileRequest, SensitivityReport, UsageError, known_profile, profile_model
from bitplan.allocator.hollow import Hollow, open_hollow
from bitplan.allocator.models import load
from bitplan.allocator.source import resolve
from bitplan.sensitivity import METRICS, chain, hollow, streaming
from bitplan.sensitivity.calibration import Calibration
from bitplan.sensitivity.estimate import Estimate
from bitplan.sensitivity.flow import Flow, estimate_flow
from bitplan.sensitivity.network import Network, task_objective
from bitplan.sensitivity.progress import compute_always, silent
from bitplan.sensitivity.render import Renderings, Rounding
from bitplan.sensitivity.spill import Spill
from bitplan.sensitivity.streaming import Stream, Task, gathered, stream_estimate, tasks, tokens_by_unit
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

    def expected(self, flow: Flow, rounding: Rounding = "gptq", part: Any = None) -> Estimate:
        """With the whole model in memory."""
        made = self.renderings(self.home / "in memory", self.network, rounding)
        made.make([(unit, fmt) for unit in self.network.inventory.units for fmt in self.formats])
        data = part or self.calibration.estimate
        return estimate_flow(flow, self.network, made, data, self.formats, SEED, compute_always, silent)

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
        equal(found, case("vit").expected(flow, part=labelled))
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


class Stopped(Exception):
    """Raised in the middle of things."""


class Watch:
    """Counts what the tasks of all streams do, and stops them before the `stop`-th pass through a block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop, self.passed = 10**9, 0
        self.opened: Counter[str] = Counter()
        through, opened = chain.through, hollow.opened

        def counted(*arguments: Any) -> Tensor:
            if self.passed == self.stop:
                self.stop = 10**9
                raise Stopped
            self.passed += 1
            return through(*arguments)

        def open_counted(chain: Any, read: Any, path: str) -> Any:
            self.opened[path] += 1
            return opened(chain, read, path)

        monkeypatch.setattr(streaming, "through", counted)
        monkeypatch.setattr(streaming, "opened", open_counted)

    @property
    def blocks(self) -> int:
        """How often a block was opened."""
        return sum(count for path, count in self.opened.items() if path)


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


@pytest.fixture(scope="module")
def request_(shelf: Shelf) -> ProfileRequest:
    return ProfileRequest(
        str(shelf.model("llama")), formats=("int3-g64-asym",), tokens=4 * models.LONGEST, calibration=str(shelf.text), stream=True
    )


@pytest.fixture(scope="module")
def whole_home(request_: ProfileRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model was profiled in memory, in one go."""
    home = tmp_path_factory.mktemp("whole")
    profile_model(replace(request_, stream=False), home=home)
    return home


@pytest.fixture(scope="module")
def whole(request_: ProfileRequest, whole_home: Path) -> SensitivityReport:
    report = known_profile(request_, whole_home)
    assert report is not None
    return report


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def same(one: SensitivityReport, other: SensitivityReport) -> None:
    """Equal to the last bit in all but the time it took."""
    assert one.to_json() | {"seconds": 0} == other.to_json() | {"seconds": 0}


class TestProfiles:
    def test_a_streamed_report_is_the_report(self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path) -> None:
        """Id, settings and all; either is found where the other is asked for; nothing else is left behind."""
        same(profile_model(request_, home=tmp_path), whole)
        assert not list((tmp_path / "partial").iterdir())
        for stream in (True, False):
            known = known_profile(replace(request_, stream=stream), tmp_path)
            assert known is not None
            same(known, whole)

    def test_experts_that_no_token_reaches(self, shelf: Shelf, tmp_path: Path) -> None:
        """They have the loss that the report of the model in memory gives them, and the same is said of them."""
        folder = shutil.copytree(shelf.model("mixtral"), tmp_path / "model")

        def starve(state: dict[str, Tensor]) -> None:
            """Every token has a large seventh number, which the router counts against the third expert."""
            state["model.embed_tokens.weight"][:, 7] = 9
            for layer in range(2):
                router = state[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
                router[:, 7] = 0
                router[2] = torch.nn.functional.one_hot(torch.tensor(7), 64) * -40

        rewrite(folder, starve)
        request = ProfileRequest(str(folder), "kl_fisher", ("int3-g64",), str(shelf.text), 256, rounding="nearest")
        loaded = profile_model(request, home=tmp_path / "loaded")
        same(profile_model(replace(request, stream=True), home=tmp_path / "streamed"), loaded)
        assert any("of 8 experts were reached by no token" in note for note in loaded.notes)

    def test_tokens_are_counted_as_the_router_counts_them(self, case: Callable[[str], Case], tmp_path: Path) -> None:
        from bitplan.sensitivity.routing import collect_routing

        llama, mixtral = (case(kind).stream(tmp_path / kind, OUTPUT, "nearest") for kind in ("llama", "mixtral"))
        for stream in (llama, mixtral):
            stream_estimate(stream, silent)
        network, part = case("mixtral").network, case("mixtral").calibration.estimate
        expected = collect_routing(network, part, compute_always, silent).unit_counts(network.inventory.units)
        np.testing.assert_array_equal(tokens_by_unit(mixtral), expected)
        assert len(set(expected.tolist())) > 5
        assert set(tokens_by_unit(llama).tolist()) == {float(expected.max())}

    def test_the_model_is_not_loaded(
        self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bitplan.allocator import models as loading

        def refuse(*arguments: object) -> None:
            raise AssertionError("it was loaded")

        monkeypatch.setattr(loading, "load", refuse)
        same(profile_model(request_, home=tmp_path), whole)

    def test_a_model_that_is_larger_than_memory_is_streamed_unasked(
        self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bitplan.allocator import profile

        stages: set[str] = set()
        monkeypatch.setattr(profile, "larger_than_memory", lambda source: True)
        found = profile_model(
            replace(request_, stream=False), home=tmp_path, progress=lambda stage, done, total: stages.add(stage)
        )
        same(found, whole)
        assert stages == {"load", "stream"}
        with pytest.raises(UsageError, match=r"does not fit in memory and metric 'divergence' needs it there; take kl_fisher"):
            profile_model(replace(request_, stream=False, metric="divergence"), home=tmp_path)
        with pytest.raises(UsageError, match=r"does not fit in memory and --until-stable needs it there; leave"):
            profile_model(replace(request_, stream=False, until_stable="30%"), home=tmp_path)

    @pytest.mark.parametrize("kind", ["gpt2", "residual"])
    def test_a_model_that_cannot_be_streamed_says_so(self, kind: str, shelf: Shelf, tmp_path: Path) -> None:
        request = ProfileRequest(str(shelf.model(kind)), formats=("int4-g64",), calibration=str(shelf.text), stream=True)
        with pytest.raises(ModelError, match="leave --stream out"):
            profile_model(request, home=tmp_path)

    @pytest.mark.parametrize("after", [0, 5, 9])
    def test_interrupted_it_goes_on(
        self, after: int, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path, watch: Watch
    ) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("stream", after):
                raise Interrupted

        with pytest.raises(Interrupted):
            profile_model(request_, home=tmp_path, progress=stop)
        assert known_profile(request_, tmp_path) is None
        same(profile_model(request_, home=tmp_path), whole)
        assert (watch.passed, watch.blocks) == (10 * 4, 10)
        assert not list((tmp_path / "partial").iterdir())

    def test_interrupted_it_may_go_on_in_memory(self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("stream", 10):
                raise Interrupted

        with pytest.raises(Interrupted):
            profile_model(request_, home=tmp_path, progress=stop)
        assert len(list((tmp_path / "partial").glob("*.spill/*"))) > 10
        same(profile_model(replace(request_, stream=False), home=tmp_path), whole)
        assert not list((tmp_path / "partial").iterdir())

    @pytest.mark.parametrize("when", ["between tasks", "while writing"])
    def test_it_survives_being_killed(
        self, when: str, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path, watch: Watch
    ) -> None:
        """kill -9 in another process: no handler runs, and a file may be half written."""
        code = """
import os, signal, sys
from pathlib import Path
from bitplan.allocator import ProfileRequest, profile_model
model, home, calibration, tokens, when, *formats = sys.argv[1:]
left, replace = 18, Path.replace
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def progress(stage, done, total):
    if (stage, done, when) == ("stream", 8, "between tasks"):
        kill()
def killing(path, target):
    global left
    left -= ".spill" in str(path)
    if left == 0:
        kill()
    return replace(path, target)
if when == "while writing":
    Path.replace = killing
request = ProfileRequest(model, "kl_fisher", tuple(formats), calibration, int(tokens), stream=True)
profile_model(request, home=home, progress=progress)
"""
        assert request_.formats is not None
        arguments = [request_.model, str(tmp_path), str(request_.calibration), str(request_.tokens), when, *request_.formats]
        done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        spilled = list((tmp_path / "partial").glob("*.spill/*"))
        assert len([path for path in spilled if path.suffix == ".tmp"]) == (when == "while writing")
        same(profile_model(request_, home=tmp_path), whole)
        # Of the passes of four batches through ten tasks, these were still to do: those of sums and backward, two blocks each,
        # and, in the other case, seven of eight forward.
        assert watch.passed == (4 * 4 if when == "between tasks" else 4 * 4 + 7)
        assert not list((tmp_path / "partial").iterdir())

    def test_weights_that_are_no_numbers(self, request_: ProfileRequest, shelf: Shelf, tmp_path: Path) -> None:
        folder = shutil.copytree(shelf.model("llama"), tmp_path / "model")
        rewrite(folder, lambda state: state["model.layers.1.mlp.up_proj.weight"][3, 4].fill_(float("nan")))
        with pytest.raises(ModelError, match=r"'model.layers.1.mlp.up_proj.weight' holds 1 NaN or infinite values; repair"):
            profile_model(replace(request_, model=str(folder)), home=tmp_path / "home")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one program's memory is read from Linux's /proc")
def test_memory_holds_a_few_blocks_and_not_the_model(shelf: Shelf, tmp_path: Path) -> None:
    """Ten blocks, 348 MB in float32, in less than half of that. A tiny model is streamed first: code takes memory too."""
    blocks, width = 10, 768
    config = models.hf.LlamaConfig(
        **{**models.LLAMA, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": blocks},
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in models.hf.LlamaForCausalLM(config).named_parameters()}
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    for index, (name, shape) in enumerate(shapes.items()):
        numbers = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / shape[1] ** 0.5
        save_file({name: numbers.bfloat16()}, folder / f"{index:03}.safetensors", {"format": "pt"})
    code = """
import sys
from pathlib import Path
import psutil
from bitplan.allocator import ProfileRequest, profile_model
tiny, model, home, text = sys.argv[1:]
def stream(folder):
    request = ProfileRequest(folder, "kl_fisher", ("int4-g64",), text, 64, rounding="nearest", stream=True)
    profile_model(request, home=home)
stream(tiny)
baseline = psutil.Process().memory_info().rss
stream(model)
# Of this program alone: getrusage counts what its parent had when it was forked.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - baseline)
"""
    arguments = [str(shelf.model("llama")), str(folder), str(tmp_path / "home"), str(shelf.text)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    block = 4 * sum(math.prod(shape) for name, shape in shapes.items() if ".0." in name)
    whole = 4 * sum(math.prod(shape) for shape in shapes.values())
    assert whole > 9 * block
    assert block < int(done.stdout) < 5 * block
