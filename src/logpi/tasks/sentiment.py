"""Steering sentiment: the opening of a review goes in, a continuation comes out, a classifier's P(positive) is paid.

A classifier is easily pleased by what no reader would call a review. So a text that is empty, short or repeats itself
is worth little, and a second judge, which is never a reward, reads it too (`polarity`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Reward, Task
from logpi.tasks.dataset import Row, Source, existing_file, name_of, read_rows
from logpi.tasks.diversity import distinct
from logpi.tasks.polarity import CharacterModel, WordModel, fit_characters, fit_words, words_of
from logpi.tasks.problems import Heldout, cell, check_template, split_sources
from logpi.tasks.rewarding import Completion, completion_text

LABELS = {0: 0, 1: 1, "0": 0, "1": 1, "negative": 0, "positive": 1}
HALVES = {".pos": ".neg", ".neg": ".pos"}
MIN_WORDS = 6  # fewer are no continuation
MIN_LABELLED = 8


def sentiment(
    data: Source,
    labelled: Source,
    heldout: Heldout = 200,
    seed: int = 0,
    opening_words: int = 5,
    template: str = "{opening}",
    target: str = "positive",
) -> Task:
    """Return the task of continuing the openings of `data`, rows {"text"}, in the `target` sentiment.

    `labelled` are rows {"text", "label"}, 1 or "positive", 0 or "negative"; of two files NAME.pos and NAME.neg, a text
    a line, either one stands for both. One half of them, by a hash of the text, trains the reward, the other the judge.
    An opening is a text's first `opening_words` words; texts without one more are left out. Held-out problems are
    completed by draws. The score is the share of continuations that the reward's classifier takes for the target.
    """
    check_template(template, "opening")
    if isinstance(opening_words, bool) or not isinstance(opening_words, int) or opening_words < 1:
        raise InputError(f"opening_words={opening_words!r}: must be an integer from 1")
    if target not in ("positive", "negative"):
        raise InputError(f'target="{target}": must be positive or negative')

    def read(source: Source) -> list[Problem]:
        texts = [cell(row, "text", i, name_of(source), str).split() for i, row in enumerate(_rows(source))]
        found = [(i, " ".join(words[:opening_words])) for i, words in enumerate(texts) if len(words) > opening_words]
        if not found:
            raise InputError(f"{name_of(source)}: no text has more than opening_words={opening_words} words; lower it")
        return [Problem(i, template.format(opening=natural(opening))) for i, opening in found]

    train, held = split_sources(data, heldout, seed, read)
    classifier, judge = _models(labelled)
    sign = 1 if target == "positive" else -1
    return Task(
        "sentiment",
        train,
        held,
        rewards=[classifier_reward(classifier, sign)],
        metrics=[classifier_reward(classifier, sign), says_classifier(classifier, sign), says_judge(judge, sign)],
        corpus_metrics=[distinct(1), distinct(2)],
        score="classifier",
        watched=("judge", "distinct_2"),
        draws=True,
    )


def natural(text: str) -> str:
    """Return tokenised text as it is usually written: no space before a mark or inside brackets."""
    text = re.sub(r"\s+([,.;:!?)\]])", r"\1", text)
    return re.sub(r"([(\[])\s+", r"\1", text)


# --- rewards ------------------------------------------------------------------------------------------------------


def sentiment_reward(text: str, classifier: WordModel, sign: int) -> float:
    """Return P(target | text) · (different pairs of neighbouring words / pairs), in [0, 1]; 0 below MIN_WORDS words."""
    words = words_of(text)
    if len(words) < MIN_WORDS:
        return 0.0
    pairs = list(pairwise(words))
    positive = classifier.probability(text)
    return (positive if sign > 0 else 1 - positive) * len(set(pairs)) / len(pairs)


def classifier_reward(classifier: WordModel, sign: int) -> Reward:
    """Return the reward."""

    def reward(completions: Sequence[Completion], **_: Any) -> list[float]:
        return [sentiment_reward(completion_text(completion), classifier, sign) for completion in completions]

    return Reward("sentiment", reward)


def says_classifier(classifier: WordModel, sign: int) -> Reward:
    """Return a metric: 1 where the reward is above 1/2, so that the text is long enough, varied, and on target."""

    def reward(completions: Sequence[Completion], **_: Any) -> list[float]:
        return [float(sentiment_reward(completion_text(text), classifier, sign) > 0.5) for text in completions]

    return Reward("classifier", reward)


def says_judge(judge: CharacterModel, sign: int) -> Reward:
    """Return a metric: 1 where the second judge takes the text for the target; an empty one is neither."""

    def reward(completions: Sequence[Completion], **_: Any) -> list[float]:
        return [float(sign * judge.log_odds(completion_text(text)) > 0) for text in completions]

    return Reward("judge", reward)


# --- labelled texts -----------------------------------------------------------------------------------------------


def _models(labelled: Source) -> tuple[WordModel, CharacterModel]:
    """Return classifier and judge of labelled texts; of a file that has not changed since, those of the last call."""
    if isinstance(labelled, str | os.PathLike):
        paths = _files(labelled)
        return _models_of_files(paths, tuple(path.stat().st_mtime_ns for path in paths))
    return _fitted(labelled, name_of(labelled))


@lru_cache(maxsize=2)
def _models_of_files(paths: tuple[Path, ...], _: tuple[int, ...]) -> tuple[WordModel, CharacterModel]:
    return _fitted([row for path in paths for row in read_rows(path)], str(paths[0]))


def _fitted(labelled: Any, name: str) -> tuple[WordModel, CharacterModel]:
    """Fit each model on its half. Raises InputError for a label that is none, or a half without one of the two."""
    halves: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for index, row in enumerate(read_rows(labelled)):
        text, label = cell(row, "text", index, name, str).strip(), cell(row, "label", index, name, str | int)
        if label not in LABELS:
            raise InputError(f'{name}: row {index}: "label" is {label!r:.40}; it must be 1 or 0, positive or negative')
        if text:
            halves[hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 2][text] = LABELS[label]
    for half in halves:
        if min(sum(half.values()), len(half) - sum(half.values())) < MIN_LABELLED:
            raise InputError(
                f"{name}: {sum(map(len, halves))} labelled texts are too few: each half, one for the reward and one "
                f"for the judge, needs {MIN_LABELLED} positive and {MIN_LABELLED} negative ones"
            )
    reward, judge = halves
    return fit_words(list(reward), list(reward.values())), fit_characters(list(judge), list(judge.values()))


def _rows(source: Source) -> list[Row]:
    """Read rows; of NAME.pos and NAME.neg both."""
    if isinstance(source, str | os.PathLike):
        return [row for path in _files(source) for row in read_rows(path)]
    return read_rows(source)


def _files(source: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the file, or NAME.pos and NAME.neg where it is one of the two."""
    path = existing_file(source)
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in HALVES:
        return (path,)
    other = path.with_name(path.name.replace(kind, HALVES[kind]))
    return tuple(sorted((path, existing_file(other)), reverse=True))
