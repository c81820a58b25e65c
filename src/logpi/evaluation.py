"""Scores on held-out problems, with intervals; what a policy is like before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from logpi.errors import NothingScoredError
from logpi.randomness import with_replacement
from logpi.tasks.base import CorpusMetric, Problem, Reward, Task
from logpi.tasks.problems import columns_of
from logpi.tasks.rewarding import Completion, as_completions, score
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
NUM_RESAMPLES = 1000  # of a bootstrap


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


def corpus_estimate(
    metric: CorpusMetric, completions: Sequence[Completion], columns: Mapping[str, list[Any]]
) -> Estimate:
    """Return a corpus metric with its 95 % interval over completions, by its way of resampling."""
    if not completions:
        return estimate([])
    rows = np.asarray(metric.statistics(completions, **columns), dtype=np.float64)
    score = metric.score(rows.sum(0).tolist())
    low, high = (bootstrap if metric.resampling == "bootstrap" else jackknife)(metric, rows, score)
    return Estimate(score, low, high, len(rows))


def bootstrap(metric: CorpusMetric, rows: np.ndarray, score: float) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of the metric of 1000 corpora, each as many completions drawn with
    replacement (Koehn 2004, "Statistical significance tests for machine translation evaluation", section 3). The draws
    are the same at each call: intervals can be compared."""
    scores = []
    for resample in range(NUM_RESAMPLES):
        scores.append(metric.score(rows[with_replacement(len(rows), resample)].sum(0).tolist()))
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def jackknife(metric: CorpusMetric, rows: np.ndarray, score: float) -> tuple[float, float]:
    """Return score ± 1.96 s, s² = (n − 1)/n Σ_i (θ_i − mean θ)² with θ_i the metric without completion i: in
    expectation no smaller than the variance (Efron and Stein 1981, "The jackknife estimate of variance")."""
    num, sums = len(rows), rows.sum(0)
    left_out = np.array([metric.score((sums - row).tolist()) for row in rows])
    half = Z * math.sqrt((num - 1) / num * float(((left_out - left_out.mean()) ** 2).sum()))
    return score - half, score + half


def evaluate_problems(
    problems: Sequence[Problem],
    metrics: Sequence[Reward],
    complete: Callable[[Sequence[Problem]], list[Trajectory]],
    decode: Callable[[Trajectory], str],
    on_failure: str = "error",
    corpus_metrics: Sequence[CorpusMetric] = (),
    score_name: str | None = None,
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Complete each problem once, score all texts together by the corpus metrics and each by every metric; the score is
    the one named, or the first of these in this order. Returns each text with its first metric too."""
    trajectories = complete(problems)
    texts = [decode(t) for t in trajectories]
    prompts = [p.prompt for p in problems]
    completions, columns = as_completions(prompts, texts), columns_of(problems)
    ids = [t.actions.tolist() for t in trajectories]
    by_name = score(metrics, prompts, completions, ids, columns, on_failure=on_failure).by_name
    results = {metric.name: corpus_estimate(metric, completions, columns) for metric in corpus_metrics}
    results |= {name: estimate([v for v in values if v is not None]) for name, values in by_name.items()}
    scored = [{"text": text, "score": value} for text, value in zip(texts, by_name[metrics[0].name], strict=True)]
    extras = {"signatures": {m.name: m.signature() for m in corpus_metrics}} if corpus_metrics and texts else {}
    chosen = results[score_name or next(iter(results))]
    return Evaluation(**asdict(chosen), metrics=results, extras=extras), scored


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
