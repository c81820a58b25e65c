"""Semantic roles as spans of words, as tags, and how they are scored: labelled arguments as in CoNLL-2005.

An argument is right where its label and all its words are (Carreras and Màrquez 2005, "Introduction to the CoNLL-2005
shared task", section 3.3). A span C-X continues the last X before it, and the two are one argument; a C-X that
continues nothing counts as X. V, the predicate itself, is not scored. R-X, a reference to X, is an argument of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"


class Span(NamedTuple):
    """Words start … end − 1 of a sentence, and what they are."""

    label: str
    start: int
    end: int


class Argument(NamedTuple):
    """A label and the (start, end) of each of its parts, in their order."""

    label: str
    parts: tuple[tuple[int, int], ...]


def arguments(spans: Iterable[Span]) -> set[Argument]:
    """Return what is scored of a proposition's spans, which don't overlap: C- spans joined, V left out."""
    found: list[tuple[str, list[tuple[int, int]]]] = []
    last: dict[str, list[tuple[int, int]]] = {}  # the newest argument of each label
    for label, start, end in sorted(spans, key=lambda span: (span.start, span.end)):
        head = label.removeprefix("C-")
        if label != head and head in last:
            last[head].append((start, end))
        else:
            last[head] = [(start, end)]
            found.append((head, last[head]))
    return {Argument(label, tuple(parts)) for label, parts in found if label != "V"}


def counts(predicted: Iterable[Span], gold: Iterable[Span]) -> tuple[int, int, int]:
    """Return the numbers of arguments (right, predicted, gold) of one proposition."""
    given, wanted = arguments(predicted), arguments(gold)
    return len(given & wanted), len(given), len(wanted)


def f1(num_right: float, num_predicted: float, num_gold: float) -> float:
    """Return 2·right / (predicted + gold), the harmonic mean of precision and recall; 1 where there is nothing to find
    and nothing was predicted."""
    total = num_predicted + num_gold
    return 2 * num_right / total if total else 1.0


def tags_of(spans: Iterable[Span], num_words: int) -> list[str]:
    """Return BIO tags [words]: B- at the first word of a span, I- at its others, O elsewhere."""
    tags = [OUTSIDE] * num_words
    for label, start, end in spans:
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Return the spans of BIO tags. An I-X that goes on from no X begins one."""
    spans: list[Span] = []
    for place, tag in enumerate(tags):
        kind, _, label = tag.partition("-")
        goes_on = kind == "I" and spans and spans[-1].end == place and spans[-1].label == label
        if goes_on:
            spans[-1] = spans[-1]._replace(end=place + 1)
        elif tag != OUTSIDE:
            spans.append(Span(label, place, place + 1))
    return spans
