"""A task of one's own: any dataset with a prompt column, and any reward functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Reward, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, load_split, problem_from_row
from logpi.tasks.reward_loading import load_reward
from logpi.tasks.rewarding import as_reward

RewardLike = str | Callable[..., Any] | Reward


def custom(
    data: Source,
    rewards: RewardLike | Sequence[RewardLike],
    heldout: Heldout = 0.1,
    seed: int = 0,
    prompt_column: str = "prompt",
    reward_weights: Sequence[float] | None = None,
    metrics: RewardLike | Sequence[RewardLike] | None = None,
    name: str = "custom",
) -> Task:
    """Return a task from rows and reward functions, given as functions or as "file.py:function".

    `metrics` default to the rewards; `heldout` is a count, a fraction or another source.
    """
    functions = _rewards(rewards, reward_weights)

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        return problem_from_row(index, row, prompt_column, source_name)

    train, held = load_split(data, heldout, seed, to_problem)
    return Task(name, train, held, functions, functions if metrics is None else _rewards(metrics))


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
