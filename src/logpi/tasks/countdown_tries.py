"""Countdown in tries: a line for each attempt, its steps computed, until one comes to the target; then the answer.

What a warm start imitates where an answer in one line leaves no room to compute. The wrong tries are draws: imitation
teaches to compute, to see whether it is the target, and to try again. What to try first is left to the reward.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

MAX_VALUE = 200  # in a step: larger numbers seldom lead back to a target
MAX_NUMBERS = 5  # of a puzzle: all ways are gone through


@dataclass(frozen=True)
class Term:
    """A number, or two terms put together: its value, how it is written, and the steps that compute it."""

    value: int
    text: str
    steps: tuple[str, ...] = ()


def solution_of(numbers: Sequence[int], target: int, draw: random.Random) -> Term | None:
    """Return one of the ways to a target in integers from 0 to MAX_VALUE; None where there is none."""
    ways = [term for term in _ends(_terms(numbers)) if term.value == target]
    return draw.choice(ways) if ways else None


def puzzle_of(numbers: Sequence[int], low: int, high: int, draw: random.Random) -> Term | None:
    """Return a way from the numbers to some target from `low` to `high`; None where none is found in 100 draws."""
    ways = (_drawn(_terms(numbers), draw) for _ in range(100))
    return next((term for term in ways if low <= term.value <= high), None)


def in_tries(numbers: Sequence[int], solution: Term, limit: int, draw: random.Random) -> str:
    """Return tries, a line each, and the answer behind the one that comes to the target, at the latest the `limit`-th:
    "7+24=31 35-31=4\\n7+24=31 35+31=66\\n35+(7+24)"."""
    tries: dict[tuple[str, ...], Term] = {}
    for _ in range(draw.randrange(limit)):
        drawn = _drawn(_terms(numbers), draw)
        if drawn.value == solution.value:
            return _written([*tries.values(), drawn])
        tries.setdefault(drawn.steps, drawn)
    return _written([*tries.values(), solution])


def _terms(numbers: Sequence[int]) -> list[Term]:
    return [Term(number, str(number)) for number in numbers]


def _written(tries: Sequence[Term]) -> str:
    return "\n".join([*(" ".join(term.steps) for term in tries if term.steps), tries[-1].text])


def _ends(terms: Sequence[Term]) -> Iterator[Term]:
    """Every term that uses all of them."""
    if len(terms) == 1:
        yield terms[0]
    for a, b in combinations(range(len(terms)), 2):
        rest = [term for i, term in enumerate(terms) if i not in (a, b)]
        for joined in _joined(terms[a], terms[b]):
            yield from _ends([*rest, joined])


def _drawn(terms: Sequence[Term], draw: random.Random) -> Term:
    """Two terms put together at random, again and again."""
    while len(terms) > 1:
        a, b = draw.sample(range(len(terms)), 2)
        joined = draw.choice(_joined(terms[a], terms[b]))
        terms = [*(term for i, term in enumerate(terms) if i not in (a, b)), joined]
    return terms[0]


def _joined(a: Term, b: Term) -> list[Term]:
    """Two terms by each operator whose result is an integer from 0 to MAX_VALUE, the larger one first; their sum
    where none is."""
    if a.value < b.value:
        a, b = b, a
    results = {"+": a.value + b.value, "-": a.value - b.value, "*": a.value * b.value}
    if b.value and a.value % b.value == 0:
        results["/"] = a.value // b.value
    kept = {sign: value for sign, value in results.items() if value <= MAX_VALUE} or {"+": results["+"]}
    return [_join(a, sign, b, value) for sign, value in kept.items()]


def _join(a: Term, sign: str, b: Term, value: int) -> Term:
    steps = (*a.steps, *b.steps, f"{a.value}{sign}{b.value}={value}")
    return Term(value, f"{_part(a)}{sign}{_part(b)}", steps)


def _part(term: Term) -> str:
    return f"({term.text})" if term.steps else term.text
