"""Numbers in text: the last one, or the whole of it; and the rewards that compare them with the `answer` column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from logpi.tasks.rewarding import Completion, completion_text

# 1,234 or 1234, with decimals, or .5; a minus is a sign only where it does not follow a letter, a digit or ")".
NUMBER = re.compile(r"(?:(?<![\w)])[-−])?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
LONGEST_NUMBER = 100  # characters; Python refuses integers of over 4300 digits
TOLERANCE = Fraction(1, 10**6)


def number_in(text: str) -> Fraction | None:
    """Return the number that the whole text is, but for white space; None where it is none."""
    text = text.strip()
    if len(text) > LONGEST_NUMBER or not NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", "").replace("−", "-"))


def last_number_in(text: str) -> Fraction | None:
    """Return the last number in the text; None where there is none, or it is over 100 characters long."""
    numbers = NUMBER.findall(text)
    return number_in(numbers[-1]) if numbers else None


def strict(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """Give 1 where the whole completion, but for white space, is the answer as a number."""
    return [_equal(number_in(completion_text(text)), gold) for text, gold in zip(completions, answer)]


def last_number(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """Give 1 where the last number in the completion is the answer."""
    return [_equal(last_number_in(completion_text(text)), gold) for text, gold in zip(completions, answer)]


def _equal(number: Fraction | None, gold: str) -> float:
    expected = number_in(gold)
    return float(number is not None and expected is not None and abs(number - expected) <= TOLERANCE)
