"""Calling reward functions and judging what they return; and finding them by name."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from logpi.errors import InputError, RewardError
from logpi.tasks.base import Reward
from logpi.tasks.reward_loading import load_reward
from logpi.tasks.rewarding import Scores, as_completions, as_reward, score

COMPLETIONS = ["a", "bb", "ccc"]


def scores_of(*functions, weights=None, columns=None, completions=COMPLETIONS, **options) -> Scores:
    rewards = [as_reward(function, weight) for function, weight in zip(functions, weights or [1.0] * len(functions))]
    ids = [[1] * len(text) for text in completions]
    return score(rewards, ["p"] * len(completions), completions, ids, columns or {}, **options)


def lengths(completions):
    return [len(text) for text in completions]


def returning(value):
    def f(completions):
        return value

    return f


def test_the_total_is_the_weighted_sum_over_what_is_not_none():
    def first(**_):
        return [1.0, None, None]

    def second(**_):
        return [10.0, 20.0, None]

    scores = scores_of(first, second, weights=[2.0, -0.5])
    assert scores == Scores([-3.0, -10.0, None], {"first": [1.0, None, None], "second": [10.0, 20.0, None]})


def test_every_argument_of_trl_arrives_by_keyword():
    seen = {}

    def f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, environments, **columns):
        seen.update(locals())
        log_extra("seen", completions)
        log_metric("mean", 1.0)
        return [0.0] * 3

    logged = []
    log = lambda *arguments: logged.append(arguments)
    scores_of(
        f, columns={"answer": [7, 8, 9]}, trainer_state="s", log_extra=log, log_metric=log, environments=[1, 2, 3]
    )
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


def test_names_come_from_the_function():
    class Judge:
        def __call__(self, completions):
            return [1.0] * 3

    assert list(scores_of(lengths, Judge(), lambda completions: [0.0] * 3).by_name) == ["lengths", "Judge", "<lambda>"]


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
    chat = [{"role": "user", "content": "p"}]
    assert as_completions(["p", chat], ["x", "y"]) == ["x", [{"role": "assistant", "content": "y"}]]


async def slow(completions):
    await asyncio.sleep(0.01)
    return lengths(completions)


async def slow_too(completions):
    await asyncio.sleep(0.01)
    return [10.0] * len(completions)


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
        return scores_of(slow, slow_too, lengths)

    expected = [12, 14, 16]
    assert asyncio.run(notebook()).total == expected
    results = []
    thread = threading.Thread(target=lambda: results.append(scores_of(slow, slow_too, lengths).total))
    thread.start()
    thread.join()
    assert results == [expected]


@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_an_asynchronous_failure_is_named(inside_a_loop):
    async def broken(completions):
        raise KeyError("gold")

    async def notebook():
        return scores_of(slow, broken)

    with pytest.raises(RewardError, match='reward "broken": raised KeyError') as caught:
        asyncio.run(notebook()) if inside_a_loop else scores_of(slow, broken)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "one", [True, 1, 1.0, Fraction(1), Decimal(1), numpy.float32(1), numpy.int64(1), numpy.bool_(True), numpy.array(1.0),
            torch.tensor(1.0), torch.tensor(1), torch.tensor(True), torch.tensor(1.0, dtype=torch.bfloat16)], ids=repr
)  # fmt: skip
def test_anything_that_is_one_real_number_counts(one):
    total = scores_of(returning([one, None, 0])).total
    assert total == [1.0, None, 0.0] and type(total[0]) is float


@pytest.mark.parametrize("three", [(1, 2, 3), numpy.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])], ids=repr)
def test_anything_that_is_a_list_counts(three):
    assert scores_of(returning(three)).total == [1.0, 2.0, 3.0]


BAD_VALUES = {
    "nan": (float("nan"), "got nan; return a finite number, or None"),
    "infinity": (float("-inf"), "got -inf; return a finite"),
    "tensor nan": (torch.tensor(float("nan")), "return a finite"),
    "text": ("1.0", "got '1.0', a str; return one real number"),
    "bytes": (b"1", "a bytes"),
    "numpy text": (numpy.array("1"), "a ndarray"),
    "complex": (1j, "a complex"),
    "numpy complex": (numpy.complex128(1), "a complex128"),
    "torch complex": (torch.tensor(1 + 0j), "a Tensor"),
    "duration": (numpy.timedelta64(1, "s"), "a timedelta64"),
    "list": ([1.0], "a list"),
    "vector": (numpy.array([1.0]), "a ndarray"),
    "torch vector": (torch.tensor([1.0]), "a Tensor"),
    "dict": ({}, "a dict"),
    "huge": (10**400, "a int; return one real number"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_names_function_completion_and_value(case):
    value, message = BAD_VALUES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RewardError, match='reward "f": completion 1 got ') as caught:
            scores_of(returning([0.0, value, 0.0]))
    assert message in str(caught.value)


BAD_RESULTS = {
    "short": ([1.0], "returned 1 values for 3 completions"),
    "long": ([1.0] * 4, "returned 4 values for 3 completions"),
    "tensor of wrong length": (torch.zeros(2), "returned 2 values for 3 completions"),
    "text": ("abc", "returned a str"),
    "dict": ({0: 1, 1: 1, 2: 1}, "returned a dict"),
    "scalar": (1.0, "returned a float (1.0); return a list of 3 numbers"),
    "nothing": (None, "returned a NoneType"),
    "set": ({1.0, 2.0, 3.0}, "returned a set"),
    "matrix": (numpy.zeros((3, 1)), "returned a ndarray"),
    "0-d tensor": (torch.tensor(1.0), "returned a Tensor"),
    "generator": ((i for i in range(3)), "returned a generator"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_a_bad_result_names_function_counts_and_remedy(case):
    result, message = BAD_RESULTS[case]
    with pytest.raises(RewardError) as caught:
        scores_of(lengths, returning(result))
    assert str(caught.value).startswith('reward "f": ') and message in str(caught.value)


def test_an_exception_is_chained_and_leaves_no_coroutine_behind():
    def broken(completions):
        return completions[7]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RewardError, match='reward "broken": raised IndexError: list index') as caught:
            scores_of(slow, broken)
    assert isinstance(caught.value.__cause__, IndexError)


def test_none_from_all_functions_for_the_whole_batch_is_an_error():
    def other(**_):
        return [None, None, 0.0]

    nothing = returning([None] * 3)
    assert scores_of(nothing, other).total == [None, None, 0.0]
    with pytest.raises(RewardError, match='reward "f": None for each of the 3 completions of the batch'):
        scores_of(nothing)


def test_a_needed_argument_that_is_no_column_gets_a_suggestion():
    def f(completions, answr):
        return [0.0] * 3

    with pytest.raises(RewardError, match='reward "f": needs the argument "answr".* mean "answer"'):
        scores_of(f, columns={"answer": [1, 2, 3]})

    def by_position(completions, /):
        return [0.0] * 3

    with pytest.raises(RewardError, match='by position only.*remove the "/"'):
        scores_of(by_position)


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match='"answer" has 2 values for 3 completions'):
        scores_of(lengths, columns={"answer": [1, 2]})
    with pytest.raises(InputError, match='column "completions" has the name of an argument'):
        scores_of(lengths, columns={"completions": [1, 2, 3]})
    with pytest.raises(InputError, match='two reward functions are named "lengths"'):
        scores_of(lengths, lengths)
    with pytest.raises(InputError, match="weight=nan"):
        scores_of(lengths, weights=[float("nan")])
    with pytest.raises(InputError, match="no reward function"):
        scores_of()
    with pytest.raises(InputError, match="not a function"):
        as_reward(3)  # type: ignore[arg-type]
    with pytest.raises(RewardError, match="completion 0 is inf"):
        scores_of(returning([1e308] * 3), weights=[10.0])


def test_no_completions_call_no_function():
    assert scores_of(lambda completions: 1 / 0, completions=[]) == Scores([], {"<lambda>": []})


def test_a_reward_is_found_in_a_file_and_in_a_module(tmp_path):
    (tmp_path / "helper_of_rewards.py").write_text("UNIT = 2.0\n")
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "from helper_of_rewards import UNIT\ndef brevity(completions):\n    return [UNIT for _ in completions]\n"
    )
    reward = load_reward(f"{path}:brevity", weight=0.5)
    assert (reward.name, reward.weight) == ("brevity", 0.5) and reward.function(["a"]) == [2.0]
    assert load_reward("json:dumps") == Reward("dumps", json.dumps, 1.0)


BAD_LOCATIONS = {
    "file.py": 'write "path/to/file.py:function" or "module:function"',
    "file.py:": 'write "path/to/file.py:function"',
    ":f": 'write "path/to/file.py:function"',
    "{folder}/god.py:f": 'god.py: no such file. Did you mean "{folder}/good.py"?',
    "{folder}/good.py:brevty": 'has no function "brevty". Did you mean "brevity"?',
    "{folder}/good.py:LIMIT": '"LIMIT" is a int, not a function',
    "{folder}/bad.py:f": "bad.py: importing it raised ZeroDivisionError: division by zero",
    "{folder}/syntax.py:f": "syntax.py: importing it raised SyntaxError",
    "{folder}/exits.py:f": "exits.py: importing it raised SystemExit",
    "no_such_module_x:f": "no_such_module_x: importing it raised ModuleNotFoundError",
    "good:f": "importing it raised ModuleNotFoundError: No module named 'good'; there is a file: write \"good.py:f\"",
    "json:dumsp": 'json has no function "dumsp". Did you mean "dumps"?',
}


@pytest.mark.parametrize("location", BAD_LOCATIONS)
def test_a_reward_that_cannot_be_loaded_says_why(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text("LIMIT = 3\ndef brevity(completions):\n    return []\n")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError) as caught:
        load_reward(location.format(folder=tmp_path))
    assert BAD_LOCATIONS[location].format(folder=tmp_path) in str(caught.value)
