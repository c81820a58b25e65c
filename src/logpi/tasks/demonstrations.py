"""What somebody has done already, to be imitated: prompts with their completions, or whole conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source, name_of, read_rows
from logpi.tasks.problems import Heldout, place_of, problem_from_row, split_sources

FORM = 'text, or [{"role": "assistant", "content": text}]'


def demonstrations(data: Source, heldout: Heldout = 0.1, seed: int = 0) -> Task:
    """Return the task of rows {"prompt", "completion"}, or {"messages"}: a conversation, each of whose assistant turns
    is a demonstration, its prompt what was said before. There are no rewards: it is for supervised fine-tuning.

    Conversations with the same opening, what stands before the first assistant turn, fall on the same side.
    """
    train, held = split_sources(data, heldout, seed, read_demonstrations, opening)
    return Task("demonstrations", train, held, rewards=[])


def read_demonstrations(source: Source) -> list[Problem]:
    """Return a problem for each demonstration in a source, uids in order."""
    name = name_of(source)
    found: list[Problem] = []
    for index, row in enumerate(read_rows(source)):
        found += _of_row(index, row, name)
    return [Problem(uid, problem.prompt, problem.columns) for uid, problem in enumerate(found)]


def opening(problem: Problem) -> str:
    """Return what stands before the first assistant turn: all turns of a conversation have the same."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    until = [i for i, message in enumerate(problem.prompt) if message["role"] == "assistant"]
    return json.dumps(problem.prompt[: until[0] if until else None], sort_keys=True)


def _of_row(index: int, row: Row, name: str) -> Iterator[Problem]:
    if "messages" not in row:
        problem = problem_from_row(index, row, "prompt", name)
        yield Problem(index, problem.prompt, {"completion": _completion(row, place_of(row, index, name))})
        return
    place = f'{place_of(row, index, name)}: "messages"'
    messages = problem_from_row(index, row, "messages", name).prompt
    if isinstance(messages, str):
        raise InputError(f"{place} is text; it must be a list of messages")
    turns = [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
    if not turns:
        raise InputError(f"{place} has no assistant turn after another one, so nothing to imitate; remove the row")
    for turn in turns:
        yield Problem(index, messages[:turn], {"completion": messages[turn]["content"]})


def _completion(row: Row, place: str) -> str:
    """Return a row's completion as text. Raises InputError for what is none."""
    if "completion" not in row:
        raise InputError(f'{place} has no column "completion" (it has: {", ".join(map(str, row))}); its form is {FORM}')
    given: Any = row["completion"]
    if (
        isinstance(given, list)
        and len(given) == 1
        and isinstance(given[0], dict)
        and given[0].get("role") == "assistant"
    ):
        given = given[0].get("content")
    if not isinstance(given, str) or not given.strip():
        raise InputError(f'{place}: "completion" is {row["completion"]!r:.60}; it must be {FORM}, and not empty')
    return given
