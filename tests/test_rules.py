from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitplan.solvers import Rule, balance, count, forbid
from problems import make, worked


def test_counting() -> None:
    rule = count([0, 2], [1, 2], at_least=1, at_most=1)
    assert [rule.total(np.array(choice)) for choice in ([0, 1, 0], [1, 1, 0], [1, 0, 2])] == [0, 1, 2]
    assert [rule.kept(np.array(choice)) for choice in ([0, 1, 0], [1, 1, 0], [1, 0, 2])] == [False, True, False]
    assert rule.name == "at least 1 and at most 1 of 2 items on the options [1, 2]"
    exact = count([0, 1], [0], exactly=2)
    assert (exact.least, exact.most) == (2, 2)


def test_balancing() -> None:
    rule = balance(range(3), up=[2], down=[0])
    assert rule.kept(np.array([1, 1, 1]))
    assert rule.kept(np.array([0, 1, 2]))
    assert rule.total(np.array([0, 0, 2])) == -1
    assert not rule.kept(np.array([0, 0, 2]))


def test_forbidding() -> None:
    rule = forbid((0, 1), (2, 0))
    assert rule.kept(np.array([1, 0, 1]))
    assert not rule.kept(np.array([1, 0, 0]))


@pytest.mark.parametrize(
    ("make_rule", "message"),
    [
        (lambda: count([0], [0]), "bounds nothing"),
        (lambda: count([], [0], at_least=1), "at least 1"),
        (lambda: count([0], [0], at_least=2, at_most=1), "contradicts itself: at least 2 and at most 1"),
        (lambda: count([0], [0], exactly=1, at_least=1), "says it all"),
        (lambda: balance([0], [1], [1]), "names a pair of item and option twice"),
        (lambda: Rule("r", np.array([0]), np.array([0, 1]), np.array([1]), most=1), "one length"),
        (lambda: Rule("r", np.array([0.5]), np.array([0]), np.array([1]), most=1), "whole numbers, not float64"),
    ],
)
def test_what_is_no_rule_is_refused(make_rule, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make_rule()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (count([3], [0], at_least=1), "item or option beyond the table of 3 by 3"),
        (count([0], [-1], at_least=1), "item or option beyond the table of 3 by 3"),
        (Rule("wide", np.array([0]), np.array([0]), np.array([2**59]), most=1), "less than 2..60; measure its weights"),
        (count([0], [0], at_most=2**61), "less than 2..60"),
        (count([0, 1], [0], at_least=3), "its sum lies between 0 and 2"),
        (count([0, 1, 2], [0, 1, 2], at_most=2), "its sum lies between 3 and 3"),
    ],
)
def test_a_rule_that_no_choice_can_keep_is_refused_at_the_door(rule: Rule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(worked(12), rules=(rule,))


def test_a_rule_about_what_is_not_allowed_asks_too_much() -> None:
    problem = make([[1.0, 2.0], [1.0, 2.0]], [[0, 0], [0, 0]], 0, allowed=[[True, False], [True, True]])
    assert replace(problem, rules=(count([0, 1], [1], at_least=1),)).rules
    with pytest.raises(ValueError, match="between 0 and 1"):
        replace(problem, rules=(count([0, 1], [1], at_least=2),))


def test_rows_put_resources_first_and_name_what_is_broken() -> None:
    problem = replace(worked(12), floor=np.array([9]), rules=(count([0, 1], [0], at_least=1), forbid((0, 2), (2, 2))))
    rows = problem.rows
    assert rows.totals(np.array([0, 0, 0])).tolist() == [8, 2, 0]
    assert rows.broken(np.array([0, 0, 0])) == ["resource 0 is 8, less than 9"]
    assert [sentence.split(" is ")[0] for sentence in rows.broken(np.array([2, 2, 2]))] == [
        "resource 0",
        "the rule 'at least 1 of 2 items on the options [0]'",
        "the rule 'item 0 on option 2 excludes item 2 on option 2'",
    ]
    assert rows.table(2).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 1]]


def test_rows_of_some_items_leave_the_rest_as_it_is() -> None:
    problem = replace(worked(12), floor=np.array([9]), rules=(count([0, 1], [0], at_least=1), count([2], [1], at_most=1)))
    choice = np.array([0, 1, 1])
    part = problem.rows.restricted(np.array([0, 2]), choice)
    for first in range(3):
        for last in range(3):
            whole = problem.rows.broken(np.array([first, 1, last]))
            assert bool(part.broken(np.array([first, last]))) == bool(whole)
