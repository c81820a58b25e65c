"""How much a set of texts varies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from logpi.tasks.base import CorpusMetric
from logpi.tasks.rewarding import Completion, completion_text

TOKEN = re.compile(
    r"[^\W_\u3400-\u9fff]+(?:['’][^\W_]+)*|[\u3400-\u9fff]|[^\w\s]"
)  # a word, a Chinese character, a mark


def distinct(
    n: int, name: str | None = None, part: Callable[[Completion], str] = completion_text, of: str = "completions"
) -> CorpusMetric:
    """Return distinct-n: different n-grams of all texts over their number of n-grams, tokens in lower case, none across
    two texts (Li et al. 2016, "A diversity-promoting objective function for neural conversation models", section 5.2).
    `part` takes from a completion what counts, and `of` says what that is.

    It falls with the number of texts: compare equal numbers. A bootstrap would repeat texts, so its interval is the
    jackknife's.
    """

    def statistics(completions: Sequence[Completion], **_: Any) -> list[list[float]]:
        counts = [_grams(part(completion), n) for completion in completions]
        place = {gram: i for i, gram in enumerate(dict.fromkeys(gram for found in counts for gram in found))}
        rows = [[0.0] * len(place) for _ in counts]
        for row, found in zip(rows, counts):
            for gram, count in found.items():
                row[place[gram]] = float(count)
        return rows

    def score(sums: Sequence[float]) -> float:
        total = sum(sums)
        return sum(count > 0 for count in sums) / total if total else 0.0

    signature = f"n:{n}|case:lower|tokens:words, Chinese characters, marks|corpus:all {of}"
    return CorpusMetric(name or f"distinct_{n}", statistics, score, lambda: signature, resampling="jackknife")


def _grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    tokens = TOKEN.findall(text.lower())
    return Counter(zip(*(tokens[i:] for i in range(n))))
