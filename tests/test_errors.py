from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import fakes
from bitplan import allocator
from bitplan.allocator import Budget, Plan, PlanRequest, ProfileRequest, errors, plan_from_profile
from bitplan.allocator.source import resolve

TREE = {
    "UsageError": "BitplanError",
    "UnknownName": "UsageError",
    "ModelError": "BitplanError",
    "Infeasible": "BitplanError",
    "PlanMismatch": "BitplanError",
    "VerificationFailed": "BitplanError",
    "NotFound": "BitplanError",
    "Forbidden": "BitplanError",
    "StoreUnavailable": "BitplanError",
    "DiskFull": "BitplanError",
    "Interrupted": "BitplanError",
}


def every_error() -> dict[str, type[Exception]]:
    return {name: thing for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}


def test_the_tree_is_as_drawn() -> None:
    assert {name: error.__base__.__name__ for name, error in every_error().items() if error.__base__} == {
        "BitplanError": "Exception",
        **TREE,
    }
    drawn = re.findall(r"[├└│ ]+── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(TREE)


def test_every_error_can_be_caught_by_its_public_name() -> None:
    for name, error in every_error().items():
        assert name in allocator.__all__
        assert getattr(allocator, name) is error


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    error = errors.UnknownName("solver", "bset", ["best", "dp", "hull"])
    assert str(error) == "unknown solver 'bset' (did you mean 'best'?); choose one of: best, dp, hull"
    assert (error.kind, error.name, error.known) == ("solver", "bset", ("best", "dp", "hull"))
    assert "did you mean" not in str(errors.UnknownName("solver", "xyz", ["best"]))


def test_a_long_list_of_names_is_cut_but_kept_whole_beside_the_message() -> None:
    names = [f"format{i}" for i in range(90)]
    error = errors.UnknownName("format", "x", names)
    assert str(error).endswith("format19, ...")
    assert error.known == tuple(names)


def test_infeasible_carries_the_range_as_numbers() -> None:
    error = errors.Infeasible("too small", 10, 20)
    assert (error.minimum_bytes, error.maximum_bytes) == (10, 20)


def plan_for(budget: str, metric: str = "kl_fisher", target: str = "native", pin: str = ".*") -> Callable[[], Plan]:
    request = PlanRequest(ProfileRequest("tiny", metric), budget, target, pins=((pin, "int4-g64"),))
    return lambda: plan_from_profile(fakes.inventory(), fakes.report(request.measured), request)


REFUSALS: dict[str, Callable[[], object]] = {
    "budget nonsense": lambda: Budget.parse("12 parsecs"),
    "budget ambiguous": lambda: Budget.parse("24G"),
    "budget zero": lambda: Budget.parse("0"),
    "budget device": lambda: Budget.parse("fits 24GiB --context 8192"),
    "metric": plan_for("50%", metric="nose"),
    "target": plan_for("50%", target="abacus"),
    "pin unmatched": plan_for("50%", pin="no such unit"),
    "pin broken": plan_for("50%", pin="("),
    "pin impossible": plan_for("50%", target="vllm"),
    "infeasible": plan_for("1KiB"),
    "plan garbage": lambda: Plan.from_json("{}"),
    "plan empty": lambda: Plan.from_json(""),
    "model unknown": lambda: resolve("no-such-model"),
    "model missing": lambda: resolve("/no/such/folder"),
    "model offline": lambda: resolve("nobody/nothing"),
    "model name too long": lambda: resolve("x" * 5000),
    "model home of nobody": lambda: resolve("~nobody-of-this-name/model"),
    "unit": lambda: fakes.plan().explain("model.layers.9.mlp"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_message_is_one_sentence(refusal: Callable[[], object]) -> None:
    """One line, no full stop, no second sentence (other libraries' words stand in brackets), and more than a name."""
    with pytest.raises(errors.BitplanError) as caught:
        refusal()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.split()) >= 6
    assert not message.removesuffix("...").endswith(".")
    assert re.search(r"[a-z]\. [A-Z]", re.sub(r"\(.*?\)", "", message)) is None
