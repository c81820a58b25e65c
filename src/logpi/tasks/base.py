"""What is asked and how it is scored: a dataset row becomes a problem, a completion becomes a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Prompt = str | list[dict[str, Any]]  # plain text, or chat messages {"role", "content"}


@dataclass(frozen=True)
class Problem:
    """One dataset row made ready: the prompt, and the columns that rewards receive by name.

    `uid` is the row's index in its source, where a held-out source counts on from the training source, so that it is
    unique in a task: draws are keyed by it, and ledgers count it. What a task has `made_up` of its rows is trained on,
    but is no part of a file that is evaluated.
    """

    uid: int
    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)
    made_up: bool = False


@dataclass(frozen=True)
class Reward:
    """A named reward function with TRL's signature, and its weight in the sum."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0


@dataclass(frozen=True)
class CorpusMetric:
    """A metric of all completions together, as BLEU is: a function of sums over them.

    `statistics(completions, **columns)` gives a row of numbers a completion, `score` turns their sums into the metric;
    `signature()` says how it was computed, for the record, once it was. `resampling` gives the interval: a bootstrap,
    or a jackknife for what a text that comes twice would change, as it does a number of different words.
    """

    name: str
    statistics: Callable[..., Sequence[Sequence[float]]]
    score: Callable[[Sequence[float]], float]
    signature: Callable[[], str]
    resampling: Literal["bootstrap", "jackknife"] = "bootstrap"


@dataclass(frozen=True)
class Task:
    """Problems to train on, problems held out, and how completions are scored.

    `rewards` are summed (weighted) into the training reward. `metrics` and `corpus_metrics` are read at evaluation
    only; the one named `score`, or else the first corpus metric, or else the first metric, is the score of the run.
    None of `watched` is paid for by a reward: where one falls while the reward rises, that is said. `probes` are
    further named problem sets, evaluated before and after, never trained on. With `draws` held-out problems are
    completed by draws from the policy, not by its likeliest tokens: what varies is part of what is asked.
    `examples` are solved (prompt text, completion text) pairs from the training side, for few-shot prompts.
    `solution` is the column with a completion to imitate, for supervised fine-tuning: text, or the messages of a
    conversation that goes on from the prompt.

    A task for a tagger has `labels`, what a word can be tagged with. Its problems have columns `words`, a list, and
    `marked`, the index of the word that is asked about; a completion is a label for each word, with spaces between.

    A task of several turns has an `environment`, which makes the other side of an episode (`environments.multi_turn`)
    and gives the rewards in place of `rewards` and `metrics`; the policy writes at most `max_turns` messages. At
    evaluations `compare(texts, recorded)` sets greedy replies to a held-out problem's `replies` against recorded ones,
    all together.
    """

    name: str
    train: Sequence[Problem]
    heldout: Sequence[Problem]
    rewards: Sequence[Reward] = ()
    metrics: Sequence[Reward] = ()
    probes: Mapping[str, Sequence[Problem]] = field(default_factory=dict)
    examples: Sequence[tuple[str, str]] = ()
    solution: str = "completion"
    labels: Sequence[str] = ()
    environment: Callable[[], Any] | None = None
    max_turns: int = 1
    replies: Callable[[Problem], Sequence[Problem]] | None = None
    compare: Callable[[Sequence[str], Sequence[Problem]], dict[str, Any]] | None = None
    corpus_metrics: Sequence[CorpusMetric] = ()
    score: str | None = None
    watched: Sequence[str] = ()
    draws: bool = False
