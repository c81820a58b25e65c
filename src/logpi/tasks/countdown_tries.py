"""Countdown in tries: a line for each attempt, its steps computed, until one comes to the target; then the answer.

What a warm start imitates where an answer in one line leaves no room to compute. The wrong tries are draws: imitation
teaches to compute, to see whether it is the target, and to try again. What to try first is left to the reward.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

MAX_NUMBERS = 5  # of a puzzle: all ways are gone through
MAX_DRAWS = 100


@dataclass(frozen=True)
class Term:
    """A number, or two terms put together: its value, how it is written, and the steps that compute it."""

    value: int
    text: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tries:
    """Ways to put numbers together whose steps are integers from 0 to `ceiling`; draws are taken from `draw`."""

    ceiling: int
    draw: random.Random

    def solution(self, numbers: Sequence[int], target: int) -> Term | None:
        """Return one of the ways to a target; None where there is none."""
        ways = [term for term in self._ends(_terms(numbers)) if term.value == target]
        return self.draw.choice(ways) if ways else None

    def puzzle(self, numbers: Sequence[int], low: int, high: int) -> Term | None:
        """Return a way to some target from `low` to `high`; None where a hundred draws find none."""
        ways = (self._drawn(numbers) for _ in range(MAX_DRAWS))
        return next((term for term in ways if low <= term.value <= high), None)

    def text(self, numbers: Sequence[int], solution: Term, limit: int) -> str:
        """Return tries, a line each, the target at its end, and the answer behind the one that comes to it, at the
        latest the `limit`-th: "35-24=11 11*7=77 66?\\n24+7=31 35+31=66 66?\\n35+(24+7)"."""
        tries: dict[tuple[str, ...], Term] = {}
        for _ in range(self.draw.randrange(limit)):
            drawn = self._drawn(numbers)
            if drawn.value == solution.value:
                return _written([*tries.values(), drawn], solution.value)
            tries.setdefault(drawn.steps, drawn)
        return _written([*tries.values(), solution], solution.value)

    def _ends(self, terms: Sequence[Term]) -> Iterator[Term]:
        """Every term that uses all of them."""
        if len(terms) == 1:
            yield terms[0]
        for a, b in combinations(range(len(terms)), 2):
            for joined in self._joined(terms[a], terms[b]):
                yield from self._ends([*_without(terms, a, b), joined])

    def _drawn(self, numbers: Sequence[int]) -> Term:
        """Two terms put together at random, again and again."""
        terms = _terms(numbers)
        while len(terms) > 1:
            a, b = self.draw.sample(range(len(terms)), 2)
            terms = [*_without(terms, a, b), self.draw.choice(self._joined(terms[a], terms[b]))]
        return terms[0]

    def _joined(self, a: Term, b: Term) -> list[Term]:
        """Two terms, the larger one first, by each operator that stays below the ceiling; their difference always."""
        if a.value < b.value:
            a, b = b, a
        results = {"+": a.value + b.value, "-": a.value - b.value, "*": a.value * b.value}
        results = {sign: value for sign, value in results.items() if sign == "-" or value <= self.ceiling}
        if b.value and a.value % b.value == 0:
            results["/"] = a.value // b.value
        return [_join(a, sign, b, value) for sign, value in results.items()]


def _terms(numbers: Sequence[int]) -> list[Term]:
    return [Term(number, str(number)) for number in numbers]


def _without(terms: Sequence[Term], a: int, b: int) -> list[Term]:
    return [term for i, term in enumerate(terms) if i not in (a, b)]


def _join(a: Term, sign: str, b: Term, value: int) -> Term:
    steps = (*a.steps, *b.steps, f"{a.value}{sign}{b.value}={value}")
    return Term(value, f"{_part(a)}{sign}{_part(b)}", steps)


def _part(term: Term) -> str:
    return f"({term.text})" if term.steps else term.text


def _written(tries: Sequence[Term], target: int) -> str:
    lines = [f"{' '.join(term.steps)} {target}?" for term in tries if term.steps]
    return "\n".join([*lines, tries[-1].text])
