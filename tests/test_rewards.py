"""Calling reward functions, sync and async, and judging what they return."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from logpi.errors import InputError, RewardError
from logpi.tasks.rewarding import Scores, as_completions, as_reward, score

COMPLETIONS = ["a", "bb", "ccc"]


def scores_of(*functions, weights=None, columns=None, completions=COMPLETIONS, **options) -> Scores:
    rewards = [as_reward(function, weight) for function, weight in zip(functions, weights or [1.0] * len(functions))]
    ids = [[1] * len(text) for text in completions]
    return score(rewards, ["p"] * len(completions), completions, ids, columns or {}, **options)


def lengths(completions):
    return [len(text) for text in completions]


def returning(value, name="f"):
    def f(completions):
        return value

    f.__name__ = name
    return f


def test_the_total_is_the_weighted_sum_over_what_is_not_none():
    first, second = returning([1.0, None, None], "first"), returning([10.0, 20.0, None], "second")
    scores = scores_of(first, second, weights=[2.0, -0.5])
    assert scores == Scores([-3.0, -10.0, None], {"first": [1.0, None, None], "second": [10.0, 20.0, None]})


def test_every_argument_of_trl_arrives_by_keyword():
    seen, logged = {}, []

    def f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, environments, **columns):
        seen.update(locals())
        log_extra("seen", completions)
        log_metric("mean", 1.0)
        return [0.0] * 3

    def log(*arguments):
        logged.append(arguments)

    given = {"trainer_state": "s", "log_extra": log, "log_metric": log, "environments": [1, 2, 3]}
    scores_of(f, columns={"answer": [7, 8, 9]}, **given)
    assert seen["prompts"] == ["p"] * 3 and seen["completions"] == COMPLETIONS and seen["trainer_state"] == "s"
    assert seen["completion_ids"] == [[1], [1, 1], [1, 1, 1]] and seen["columns"] == {"answer": [7, 8, 9]}
    assert seen["environments"] == [1, 2, 3] and logged == [("seen", COMPLETIONS), ("mean", 1.0)]


def test_loggers_may_be_absent_and_environments_are_not_offered_then():
    def f(log_extra, log_metric, **rest):
        log_extra("x", [1]), log_metric("y", 2.0)
        assert "environments" not in rest
        return [1.0] * 3

    assert scores_of(f).total == [1.0] * 3


def test_a_function_gets_only_what_it_takes():
    def f(answer, completions, *, scale=2):
        return [scale * (text == gold) for text, gold in zip(completions, answer)]

    assert scores_of(f, columns={"answer": ["a", "x", "ccc"], "other": [0, 0, 0]}).total == [2, 0, 2]
    assert scores_of(functools.partial(f, scale=3), columns={"answer": ["a", "b", "c"]}).by_name == {"f": [3, 0, 0]}


def test_names_come_from_the_function_even_where_no_completion_calls_it():
    class Judge:
        def __call__(self, completions):
            return [1.0] * 3

    assert list(scores_of(lengths, Judge(), lambda completions: [0.0] * 3).by_name) == ["lengths", "Judge", "<lambda>"]
    assert scores_of(lambda completions: 1 / 0, completions=[]) == Scores([], {"<lambda>": []})


def test_a_mutating_function_changes_neither_our_data_nor_the_next_functions():
    def vandal(prompts, completions, completion_ids, answer):
        prompts.clear(), completions[0][0].update(content="x"), completion_ids[0].append(9), answer[0].append(9)
        return [0.0]

    def witness(prompts, completions, completion_ids, answer):
        assert (prompts, completions, completion_ids, answer) == (
            [[{"role": "user", "content": "p"}]], [[{"role": "assistant", "content": "a"}]], [[1]], [[1]])  # fmt: skip
        return [1.0]

    prompts, ids, columns = [[{"role": "user", "content": "p"}]], [[1]], {"answer": [[1]]}
    completions = as_completions(prompts, ["a"])
    assert score([as_reward(vandal), as_reward(witness)], prompts, completions, ids, columns).total == [1.0]
    assert (prompts, completions) == ([[{"role": "user", "content": "p"}]], [[{"role": "assistant", "content": "a"}]])
    assert (ids, columns) == ([[1]], {"answer": [[1]]})


def test_completions_take_the_form_of_their_prompts():
    prompts = ["p", [{"role": "user", "content": "p"}]]
    assert as_completions(prompts, ["x", "y"]) == ["x", [{"role": "assistant", "content": "y"}]]


async def slow(completions):
    await asyncio.sleep(0.01)
    return lengths(completions)


def test_asynchronous_functions_run_together():
    meeting = {"inside": 0, "most": 0}

    def guest(name):
        async def f(completions):
            meeting["inside"] += 1
            meeting["most"] = max(meeting.values())
            await asyncio.sleep(0.01)
            meeting["inside"] -= 1
            return [1.0] * 3

        f.__name__ = name
        return f

    assert scores_of(guest("a"), lengths, guest("b")).total == [3, 4, 5]
    assert meeting["most"] == 2


def test_asynchronous_functions_inside_a_running_loop_and_off_the_main_thread():
    async def notebook():
        return scores_of(slow, lengths)

    assert asyncio.run(notebook()).total == [2, 4, 6]
    results = []
    thread = threading.Thread(target=lambda: results.append(scores_of(slow, lengths).total))
    thread.start()
    thread.join()
    assert results == [[2, 4, 6]]


@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_an_asynchronous_failure_is_named(inside_a_loop):
    async def broken(completions):
        raise KeyError("gold")

    async def notebook():
        return scores_of(slow, broken)

    with pytest.raises(RewardError, match='reward "broken": raised KeyError') as caught:
        asyncio.run(notebook()) if inside_a_loop else scores_of(slow, broken)
    assert isinstance(caught.value.__cause__, KeyError)


ONES = [True, 1, 1.0, Fraction(1), Decimal(1), numpy.float32(1), numpy.int64(1), numpy.bool_(True), numpy.array(1.0),
        torch.tensor(1.0), torch.tensor(1), torch.tensor(True), torch.tensor(1).bfloat16()]  # fmt: skip


@pytest.mark.parametrize("one", ONES, ids=repr)
def test_anything_that_is_one_real_number_counts(one):
    total = scores_of(returning([one, None, 0])).total
    assert total == [1.0, None, 0.0] and type(total[0]) is float


@pytest.mark.parametrize("three", [(1, 2, 3), numpy.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])], ids=repr)
def test_anything_that_is_a_list_counts(three):
    assert scores_of(returning(three)).total == [1.0, 2.0, 3.0]


BAD_VALUES = [
    (float("nan"), "got nan; return a finite number, or None"), (float("-inf"), "got -inf; return a finite"),
    (torch.tensor(float("nan")), "return a finite"), ("1.0", "got '1.0', a str; return one real number"),
    (b"1", "a bytes"), (numpy.array("1"), "a ndarray"), (1j, "a complex"), (numpy.complex64(1), "a complex64"),
    (torch.tensor(1 + 0j), "a Tensor"), (numpy.timedelta64(1, "s"), "a timedelta64"), ([1.0], "a list"),
    (numpy.array([1.0]), "a ndarray"), (torch.tensor([1.0]), "a Tensor"), ({}, "a dict"),
    (10**400, "a int; return one real number"),
]  # fmt: skip


@pytest.mark.parametrize("value, message", BAD_VALUES)
def test_a_bad_value_names_function_completion_and_value(value, message):
    with pytest.raises(RewardError, match='reward "f": completion 1 got ') as caught:
        scores_of(returning([0.0, value, 0.0]))
    assert message in str(caught.value)


BAD_RESULTS = [
    ([1.0], "returned 1 values for 3 completions"), ([1.0] * 4, "returned 4 values for 3 completions"),
    (torch.zeros(2), "returned 2 values for 3 completions"), ("abc", "returned a str"),
    ({0: 1, 1: 1, 2: 1}, "returned a dict"), (1.0, "returned a float (1.0); return a list of 3 numbers"),
    (None, "returned a NoneType"), ({1.0, 2.0, 3.0}, "returned a set"), (numpy.zeros((3, 1)), "returned a ndarray"),
    (torch.tensor(1.0), "returned a Tensor"), ((i for i in range(3)), "returned a generator"),
]  # fmt: skip


@pytest.mark.parametrize("result, message", BAD_RESULTS)
def test_a_bad_result_names_function_counts_and_remedy(result, message):
    with pytest.raises(RewardError) as caught:
        scores_of(lengths, returning(result))
    assert str(caught.value).startswith('reward "f": ') and message in str(caught.value)


def test_an_exception_is_chained_and_leaves_no_coroutine_behind():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(RewardError, match='reward "<lambda>": raised IndexError: list index') as caught:
            scores_of(slow, lambda completions: completions[7])
        assert isinstance(caught.value.__cause__, IndexError)
        del caught
        gc.collect()
    assert not [warning for warning in seen if "never awaited" in str(warning.message)]


def test_none_from_all_functions_for_the_whole_batch_is_an_error():
    nothing, other = returning([None] * 3), returning([None, None, 0.0], "other")
    assert scores_of(nothing, other).total == [None, None, 0.0]
    with pytest.raises(RewardError, match='reward "f": None for each of the 3 completions of the batch'):
        scores_of(nothing)


def test_a_needed_argument_that_is_no_column_gets_a_suggestion():
    with pytest.raises(RewardError, match=r'needs the argument "answr".* mean "answer"'):
        scores_of(lambda completions, answr: [0.0] * 3, columns={"answer": [1, 2, 3]})
    with pytest.raises(RewardError, match=r'by position only.*remove the "/"'):
        scores_of(lambda completions, /: [0.0] * 3)


BAD_BATCHES = [
    ([lengths], {"columns": {"answer": [1, 2]}}, '"answer" has 2 values for 3 completions'),
    ([lengths], {"columns": {"completions": [1, 2, 3]}}, 'column "completions" has the name of an argument'),
    ([lengths, lengths], {}, 'two reward functions are named "lengths"'),
    ([lengths], {"weights": [float("nan")]}, "weight=nan"),
    ([returning([1e308] * 3)], {"weights": [10.0]}, "completion 0 is inf"),
    ([], {}, "no reward function"),
    ([3], {}, "not a function"),
]


@pytest.mark.parametrize("functions, options, message", BAD_BATCHES)
def test_a_batch_that_does_not_fit_is_refused(functions, options, message):
    with pytest.raises(InputError, match=message):
        scores_of(*functions, **options)
