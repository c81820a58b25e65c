"""Chinese quatrains: the first line is given, three more must follow, as long as it, the second and fourth in rhyme.

Rhyme is that of today's Mandarin (pypinyin, extra logpi[poems]); poets of the Tang rhymed by the sounds of their time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Source, name_of, read_rows
from logpi.tasks.diversity import distinct
from logpi.tasks.problems import Heldout, cell, split_sources
from logpi.tasks.rewarding import Completion, as_reward, completion_text
from logpi.tasks.rhyme import characters_rhyme, has_level_tone, require_chinese

MARKS = re.compile(r"[，。？！；、,.?!;\s]+")
CHARACTERS = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")
LENGTHS = (5, 7)


def quatrains(data: Source, heldout: Heldout = 200, seed: int = 0) -> Task:
    """Return the task of rows {"paragraphs": [text, ..]}, a poem each. Four lines in a row of a poem of 4, 8, 12 or
    more lines, all of 5 or all of 7 characters, are a quatrain; other poems are left out.

    The prompt is the first line, what is to be imitated the other three. Held-out problems are completed by draws; the
    score is the share of completions of which every constraint holds (`complete`).
    """
    require_chinese()

    def read(source: Source) -> list[Problem]:
        found: list[Problem] = []
        for index, row in enumerate(read_rows(source)):
            paragraphs = cell(row, "paragraphs", index, name_of(source), list)
            if not all(isinstance(text, str) for text in paragraphs):
                raise InputError(f'{name_of(source)}: row {index}: "paragraphs" must be a list of text')
            for first, *rest in quatrains_of(lines_of("".join(paragraphs))):
                columns = {"first": first, "rest": "{}。{}，{}。".format(*rest)}
                found.append(Problem(len(found), f"{first}，", columns))
        if not found:
            raise InputError(f"{name_of(source)}: no poem has 4, 8 or more lines of 5 or of 7 characters each")
        return found

    train, held = split_sources(data, heldout, seed, read)
    return Task(
        "quatrains",
        train,
        held,
        rewards=[as_reward(form)],
        metrics=[as_reward(f) for f in (complete, form, in_lines, in_rhyme, level_rhymes)],
        corpus_metrics=[distinct(1), distinct(2), distinct(2, "distinct_rhymes", rhyming_characters, "rhymes")],
        solution="rest",
        score="complete",
        watched=("level_rhymes", "distinct_2", "distinct_rhymes"),
        draws=True,
    )


def lines_of(text: str) -> list[str]:
    """Return what stands between marks."""
    return [line for line in MARKS.split(text) if line]


def quatrains_of(lines: list[str]) -> list[list[str]]:
    """Return the quatrains of a poem, none where its lines are not of one length, or hold anything but characters."""
    is_regular = len(lines) % 4 == 0 and len({len(line) for line in lines}) == 1 and len(lines[0]) in LENGTHS
    if not is_regular or not all(CHARACTERS.fullmatch(line) for line in lines):
        return []
    return [lines[start : start + 4] for start in range(0, len(lines), 4)]


# --- rewards ------------------------------------------------------------------------------------------------------


def form(completions: Sequence[Completion], first: Sequence[str], **_: Any) -> list[float]:
    """Give (lines + rhyme)/2 · share of characters that are no repetition, in [0, 1]; the rhyme counts only where there
    are three lines."""
    return [
        (_lines(lines, given) + _rhyme(lines)) / 2 * _variety(lines, given)
        for lines, given in _poems(completions, first)
    ]


def complete(completions: Sequence[Completion], first: Sequence[str], **_: Any) -> list[float]:
    """Give 1 for three lines of the given one's length, the second and fourth of the poem in rhyme, at most a fifth of
    the characters a repetition."""
    return [
        float(_lines(lines, given) == 1 and _rhyme(lines) == 1 and _variety(lines, given) >= 0.8)
        for lines, given in _poems(completions, first)
    ]


def in_lines(completions: Sequence[Completion], first: Sequence[str], **_: Any) -> list[float]:
    """Give the share of three lines that are there and as long as the given one."""
    return [_lines(lines, given) for lines, given in _poems(completions, first)]


def in_rhyme(completions: Sequence[Completion], first: Sequence[str], **_: Any) -> list[float]:
    """Give 1 where the poem's second and fourth lines rhyme, and do not end with one character."""
    return [_rhyme(lines) for lines, _ in _poems(completions, first)]


def level_rhymes(completions: Sequence[Completion], first: Sequence[str], **_: Any) -> list[float]:
    """Give the share of the second and fourth lines that end in a level tone, as the rule asks. It is the second judge:
    no reward pays for it."""
    return [sum(has_level_tone(line[-1]) for line in lines[:3:2]) / 2 for lines, _ in _poems(completions, first)]


def rhyming_characters(completion: Completion) -> str:
    """Return the last characters of the poem's second and fourth lines; of less than three lines, nothing."""
    lines = lines_of(completion_text(completion))
    return lines[0][-1] + lines[2][-1] if len(lines) > 2 else ""


def _poems(completions: Sequence[Completion], first: Sequence[str]) -> list[tuple[list[str], str]]:
    return [(lines_of(completion_text(text)), given) for text, given in zip(completions, first)]


def _lines(lines: list[str], given: str) -> float:
    fit = sum(len(line) == len(given) and CHARACTERS.fullmatch(line) is not None for line in lines[:3])
    return fit / max(3, len(lines))


def _rhyme(lines: list[str]) -> float:
    return float(len(lines) == 3 and characters_rhyme(lines[0][-1], lines[2][-1]))


def _variety(lines: list[str], given: str) -> float:
    """Return the share of the completion's characters that neither it nor the given line had before."""
    text = "".join(lines)
    return len(set(text) - set(given)) / len(text) if text else 0.0
