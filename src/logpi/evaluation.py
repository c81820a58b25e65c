"""Scores on held-out problems, with intervals; what a policy is like before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from logpi.errors import NothingScoredError
from logpi.tasks.base import Problem, Reward, Task
from logpi.tasks.problems import columns_of
from logpi.tasks.rewarding import as_completions, score
from logpi.trajectory import Trajectory


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over n samples."""

    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Evaluation:
    """The run's score (its first metric), every metric, and what else was measured."""

    score: float
    low: float
    high: float
    n: int
    metrics: dict[str, Estimate] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        values = asdict(self)
        return {**{k: v for k, v in values.items() if k != "extras"}, **values["extras"]}


Z = 1.959963984540054


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and 95 % interval: Wilson's where all values are 0 or 1, the normal one otherwise."""
    n = len(values)
    if not n:
        return Estimate(0.0, 0.0, 0.0, 0)
    mean = math.fsum(values) / n
    if all(value in (0.0, 1.0) for value in values):
        centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
        return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half), n)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, n - 1)
    half = Z * math.sqrt(variance / n)
    return Estimate(mean, mean - half, mean + half, n)


def evaluate_problems(
    problems: Sequence[Problem],
    metrics: Sequence[Reward],
    complete: Callable[[Sequence[Problem]], list[Trajectory]],
    decode: Callable[[Trajectory], str],
    on_failure: str = "error",
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Complete each problem once, score the texts by every metric; the first is the score. Returns each text with that
    score too."""
    trajectories = complete(problems)
    texts = [decode(t) for t in trajectories]
    prompts = [p.prompt for p in problems]
    columns = columns_of(problems)
    ids = [t.actions.tolist() for t in trajectories]
    by_name = score(metrics, prompts, as_completions(prompts, texts), ids, columns, on_failure=on_failure).by_name
    results = {name: estimate([v for v in values if v is not None]) for name, values in by_name.items()}
    first = metrics[0].name
    scored = [{"text": text, "score": value} for text, value in zip(texts, by_name[first], strict=True)]
    return Evaluation(**asdict(results[first]), metrics=results), scored


def check_rewards(task: Task, on_failure: str = "error") -> dict[str, float | None]:
    """Call the task's rewards and metrics on made-up completions, before any weights load: what they gave the first.

    Raises RewardError for what a function returns or raises; that none applies to a made-up text is fine.
    """
    problems, texts = list(task.train[:2]), ["1", "a made-up completion"][: len(task.train)]
    prompts, ids, found = [p.prompt for p in problems], [[0] for _ in problems], {}
    for functions in (task.rewards, task.metrics):
        try:
            if functions:
                completions = as_completions(prompts, texts)
                scores = score(functions, prompts, completions, ids, columns_of(problems), on_failure=on_failure)
                found |= {name: values[0] for name, values in scores.by_name.items()}
        except NothingScoredError:
            continue
    return found
