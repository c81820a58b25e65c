"""A task of one's own: any dataset with a prompt column, and any reward functions or an environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Reward, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, load_split, problem_from_row
from logpi.tasks.reward_loading import load_callable, load_reward
from logpi.tasks.rewarding import as_reward

RewardLike = str | Callable[..., Any] | Reward


def custom(
    data: Source,
    rewards: RewardLike | Sequence[RewardLike] | None = None,
    heldout: Heldout = 0.1,
    seed: int = 0,
    prompt_column: str = "prompt",
    reward_weights: Sequence[float] | None = None,
    metrics: RewardLike | Sequence[RewardLike] | None = None,
    name: str = "custom",
    environment: str | Callable[[], Any] | None = None,
    max_turns: int = 8,
) -> Task:
    """Return a task from rows and reward functions, given as functions or as "file.py:function".

    `metrics` default to the rewards; `heldout` is a count, a fraction or another source. With an `environment`, a class
    or "file.py:Class", an episode has up to `max_turns` messages of the policy, and the environment gives the rewards.
    """
    if (rewards is None) == (environment is None):
        raise InputError("give either rewards, or an environment that gives them")
    if environment is not None:
        make = load_callable(environment, "environment", "Class") if isinstance(environment, str) else environment
        return _of_turns(data, make, max_turns, heldout, seed, prompt_column, name)
    assert rewards is not None
    functions = _rewards(rewards, reward_weights)

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        return problem_from_row(index, row, prompt_column, source_name)

    train, held = load_split(data, heldout, seed, to_problem)
    return Task(name, train, held, functions, functions if metrics is None else _rewards(metrics))


def _of_turns(
    data: Source, make: Callable[[], Any], max_turns: int, heldout: Heldout, seed: int, prompt_column: str, name: str
) -> Task:
    """Return a task of several turns. Raises InputError where an episode can't begin."""
    missing = [verb for verb in ("reset", "step", "scores") if not callable(getattr(make, verb, None))]
    if isinstance(make, type) and missing:
        raise InputError(f"environment {make.__name__} has no method {missing[0]}; it needs reset, step and scores")
    if max_turns < 1:
        raise InputError(f"max_turns={max_turns}: the policy writes at least one message")

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        problem = problem_from_row(index, row, prompt_column, source_name)
        if isinstance(problem.prompt, str):
            raise InputError(f'{source_name}: row {index}: "{prompt_column}" is text; several turns need chat messages')
        return problem

    train, held = load_split(data, heldout, seed, to_problem)
    return Task(name, train, held, environment=make, max_turns=max_turns)


def _rewards(given: RewardLike | Sequence[RewardLike], weights: Sequence[float] | None = None) -> list[Reward]:
    several = [given] if isinstance(given, str | Reward) or callable(given) else list(given)
    if not several:
        raise InputError("rewards: none given; a task needs at least one reward function")
    if weights is not None and len(weights) != len(several):
        raise InputError(f"reward_weights: {len(weights)} weights for {len(several)} rewards; give one for each")
    return [_reward(one, weight) for one, weight in zip(several, weights or [1.0] * len(several))]


def _reward(given: RewardLike, weight: float) -> Reward:
    if isinstance(given, Reward):
        return given
    return load_reward(given, weight) if isinstance(given, str) else as_reward(given, weight)
