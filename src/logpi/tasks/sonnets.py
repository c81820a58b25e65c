"""Sonnet lines: a line is given and words that rhyme with it, as in bouts-rimés; the next line must end on a rhyme and
have ten syllables, or one more or less.

Rhyme and syllables are those of the CMU Pronouncing Dictionary (extra logpi[poems]): what it does not know does not
rhyme.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Source, name_of, read_rows
from logpi.tasks.diversity import distinct
from logpi.tasks.problems import Heldout, cell, check_template, split_sources
from logpi.tasks.rewarding import Completion, as_reward, completion_text
from logpi.tasks.rhyme import (
    english_words,
    pronunciations,
    require_english,
    rhyme_closeness,
    rhyming_parts,
    stresses,
    syllable_counts,
    words_rhyme,
)

TEMPLATE = (
    "Two lines that rhyme. The second ends on one of these words: free, thee, be\n"
    "So long as men can breathe, or eyes can see,\nSo long lives this, and this gives life to thee.\n\n"
    "Two lines that rhyme. The second ends on one of these words: {rhymes}\n{line}\n"
)
NUM_RHYMES = 4  # that are offered
SYLLABLES = (9, 11)
MIN_WORDS = 4


def sonnets(data: Source, heldout: Heldout = 0.1, seed: int = 0, template: str = TEMPLATE) -> Task:
    """Return the task of rows {"lines": [text, ..]}, a poem each: every line that another of its poem rhymes with is a
    prompt, and the nearest one after it, or else before it, is what is to be imitated. `{rhymes}` of the template are
    that one's last word and others that end lines of the data, NUM_RHYMES at most, in any order. Poems are held out
    whole. Held-out problems are completed by draws; the score is the share of lines that rhyme and keep the metre in
    known words (`complete`)."""
    check_template(template, "line", "rhymes")
    require_english()

    def read(source: Source) -> list[Problem]:
        pairs: list[tuple[str, str, str]] = []
        ends: dict[str, None] = {}  # of all lines, in their order
        for index, row in enumerate(read_rows(source)):
            lines = cell(row, "lines", index, name_of(source), list)
            if not lines or not all(isinstance(line, str) and line.strip() for line in lines):
                raise InputError(f'{name_of(source)}: row {index}: "lines" is {lines!r:.60}; it must be lines of text')
            lines = [line.strip() for line in lines]
            ends.update(dict.fromkeys(map(last_word, lines)))
            pairs += [(line, answer, lines[0]) for line, answer in rhyming_pairs(lines)]
        if not pairs:
            raise InputError(f"{name_of(source)}: no line rhymes with another of its poem, by the dictionary")
        by_part = _by_rhyming_part(ends)
        found = []
        for line, answer, poem in pairs:
            offered = ", ".join(offer(line, last_word(answer), by_part, seed))
            columns = {"line": line, "answer": answer, "poem": poem}
            found.append(Problem(len(found), template.format(line=line, rhymes=offered), columns))
        return found

    train, held = split_sources(data, heldout, seed, read, lambda problem: problem.columns["poem"])
    return Task(
        "sonnets",
        train,
        held,
        rewards=[as_reward(verse)],
        metrics=[as_reward(f) for f in (complete, verse, rhymes, in_metre, iambic)],
        corpus_metrics=[distinct(1), distinct(2)],
        solution="answer",
        score="complete",
        watched=("iambic", "distinct_2"),
        draws=True,
    )


def rhyming_pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return each line that another one rhymes with, and the nearest such one after it, or else before it."""
    ends = list(map(last_word, lines))
    found = []
    for i, line in enumerate(lines):
        others = [*range(i + 1, len(lines)), *reversed(range(i))]
        answer = next((lines[j] for j in others if words_rhyme(ends[i], ends[j])), None)
        found += [] if answer is None else [(line, answer)]
    return found


def last_word(line: str) -> str:
    """Return a line's last word in lower case, "" where it has none."""
    return words[-1] if (words := english_words(line)) else ""


def offer(line: str, answer: str, by_part: Mapping[tuple[str, ...], Sequence[str]], seed: int) -> list[str]:
    """Return words that rhyme with a line's last one: `answer` and others of those known, at most NUM_RHYMES, in an
    order that seed and line decide."""
    end, draw = last_word(line), random.Random(f"{seed} {line}")
    others = {word: None for part in sorted(rhyming_parts(end)) for word in by_part[part] if word not in (end, answer)}
    offered = [answer, *draw.sample(list(others), min(NUM_RHYMES - 1, len(others)))]
    draw.shuffle(offered)
    return offered


def _by_rhyming_part(words: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for word in words:
        for part in rhyming_parts(word):
            found.setdefault(part, []).append(word)
    return found


# --- rewards ------------------------------------------------------------------------------------------------------


def verse(completions: Sequence[Completion], line: Sequence[str], **_: Any) -> list[float]:
    """Give (rhyme + metre)/2 · share of known words · share of words that are no repetition, in [0, 1]; 0 for fewer
    than MIN_WORDS words, or where more than half of them are the given line's. A rhyme counts by how much of it there
    is (`rhyme_closeness`): whole ones are too seldom to begin with."""
    return [_verse(_first_line(text), given) for text, given in zip(completions, line)]


def complete(completions: Sequence[Completion], line: Sequence[str], **_: Any) -> list[float]:
    """Give 1 where the line rhymes, keeps the metre, has known words alone and is worth at least 0.8."""
    return [
        float(_rhymes(words, given) and _metre(words) == 1.0 and _known(words) == 1.0 and _verse(words, given) >= 0.8)
        for words, given in ((_first_line(text), given) for text, given in zip(completions, line))
    ]


def rhymes(completions: Sequence[Completion], line: Sequence[str], **_: Any) -> list[float]:
    """Give 1 where the line's last word rhymes with the given line's and is another."""
    return [float(_rhymes(_first_line(text), given)) for text, given in zip(completions, line)]


def in_metre(completions: Sequence[Completion], **_: Any) -> list[float]:
    """Give 1 where a reading of the line has 9 to 11 syllables."""
    return [float(_metre(_first_line(text)) == 1.0) for text in completions]


def iambic(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """Give the share of the stressed syllables in words of several that stand in an even place, as an iamb's do; None
    for a line without such words. It is the second judge: no reward pays for it."""
    return [_iambic(_first_line(text)) for text in completions]


def _first_line(completion: Completion) -> list[str]:
    """Return the words of the first line that has some."""
    lines = (english_words(line) for line in completion_text(completion).splitlines())
    return next((words for words in lines if words), [])


def _verse(words: list[str], given: str) -> float:
    before = set(english_words(given))
    if len(words) < MIN_WORDS or 2 * sum(word in before for word in words) > len(words):
        return 0.0
    rhyme = rhyme_closeness(words[-1], last_word(given))
    return (rhyme + _metre(words)) / 2 * _known(words) * len(set(words)) / len(words)


def _rhymes(words: list[str], given: str) -> bool:
    return bool(words) and words_rhyme(words[-1], last_word(given))


def _metre(words: list[str]) -> float:
    """Return 1 for a line of 9 to 11 syllables, less by 1/5 for each syllable that is missing or too many."""
    (least, most), (low, high) = syllable_counts(words), SYLLABLES
    return max(0.0, 1 - max(0, low - most, least - high) / 5)


def _known(words: list[str]) -> float:
    return sum(bool(pronunciations(word)) for word in words) / len(words) if words else 0.0


def _iambic(words: list[str]) -> float | None:
    place, right, num = 0, 0, 0
    for word in words:
        stress = next(iter(stresses(word)), "1")
        if len(stress) > 1:
            found = [place + i for i, mark in enumerate(stress) if mark == "1"]
            right, num = right + sum(i % 2 for i in found), num + len(found)
        place += len(stress)
    return right / num if num else None
