"""From rows to problems, and from problems to a training side and a held-out side that share no prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from logpi.errors import InputError, did_you_mean
from logpi.tasks.base import Problem, Prompt
from logpi.tasks.dataset import Row, Source, name_of, read_rows

Heldout = int | float | Source  # a count, a fraction, or a source of its own


def problems_from_rows(
    rows: Sequence[Mapping[str, Any]], prompt_column: str = "prompt", source_name: str = "dataset"
) -> list[Problem]:
    """Return a problem for each row: its prompt, and every other column for the rewards."""
    return [problem_from_row(index, row, prompt_column, source_name) for index, row in enumerate(rows)]


def problem_from_row(index: int, row: Mapping[str, Any], prompt_column: str, source_name: str) -> Problem:
    """Return the problem of the row at an index; raise InputError where its prompt is missing, empty or no prompt."""
    prompt = cell(row, prompt_column, index, source_name)
    _check_prompt(prompt, f'{place_of(row, index, source_name)}: "{prompt_column}"')
    return Problem(index, prompt, {name: value for name, value in row.items() if name != prompt_column})


def place_of(row: Mapping[str, Any], index: int, source_name: str) -> str:
    """Return what errors call a row: "file.jsonl:3: row 2", without the line where it has none."""
    line = getattr(row, "line", None)
    return f"{source_name}: row {index}" if line is None else f"{source_name}:{line}: row {index}"


def cell(row: Mapping[str, Any], column: str, index: int, source_name: str, kind: Any = object) -> Any:
    """Return one cell of the row at an index, of the given type or types; raise InputError where it is not."""
    if column not in row:
        present = ", ".join(map(str, row)) or "none"
        hint = did_you_mean(column, map(str, row))
        place = place_of(row, index, source_name)
        raise InputError(f'{place} has no column "{column}" (it has: {present}).{hint}')
    value = row[column]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
        wanted = getattr(kind, "__name__", kind)
        raise InputError(f'{place_of(row, index, source_name)}: "{column}" is {value!r:.60}, a {type(value).__name__}; '
                         f"it must be {wanted}")  # fmt: skip
    return value


def chat(text: str) -> list[dict[str, Any]]:
    """Return a chat prompt of one user message."""
    return [{"role": "user", "content": text}]


def prompt_text(prompt: Prompt) -> str:
    """Return the prompt's own text: the string, or the last message's content."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def check_template(template: str, *fields: str) -> None:
    """Raise InputError unless the template holds every field, and no other."""
    form = " and ".join(f"{{{name}}}" for name in fields)
    try:
        used = {name: f"\0{name}\0" for name in fields}
        filled = template.format(**used)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f'template "{template}": {error!r}; its fields are {form}; double other braces') from error
    if missing := [name for name, mark in used.items() if mark not in filled]:
        raise InputError(f'template "{template}" has no {{{missing[0]}}}; it must hold {form}')


def columns_of(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """Return the problems' columns as lists, as rewards receive them; None where a problem lacks the column."""
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    return {name: [problem.columns.get(name) for problem in problems] for name in names}


def prompt_key(problem: Problem) -> str:
    """Return the content of the prompt: problems with equal keys fall on the same side of a split."""
    return json.dumps(problem.prompt, sort_keys=True, default=str)


def split(
    problems: Sequence[Problem], heldout: int | float, seed: int, key: Callable[[Problem], str] = prompt_key
) -> tuple[list[Problem], list[Problem]]:
    """Return (train, held-out), disjoint in their keys, each in the given order.

    `heldout` is a count, or a fraction in [0, 1). The keys with the lowest hash of (seed, key) are held out until the
    count is reached, so problems with equal keys can raise it.
    """
    count = _num_heldout(heldout, len(problems))
    keys = [key(problem) for problem in problems]
    held: set[str] = set()
    for index in sorted(range(len(problems)), key=lambda index: (_digest(seed, keys[index]), index)):
        if count <= 0:
            break
        held.add(keys[index])
        count -= 1
    train = [problem for problem, name in zip(problems, keys) if name not in held]
    if not train:
        raise InputError(f"heldout={heldout}: leaves nothing to train on of {len(problems)} problems; lower it")
    return train, [problem for problem, name in zip(problems, keys) if name in held]


def load_split(
    data: Source, heldout: Heldout, seed: int, to_problem: Callable[[int, Row, str], Problem]
) -> tuple[list[Problem], list[Problem]]:
    """Read problems and return (train, held-out): split by count or fraction, or held out in a source of its own.

    `to_problem(index, row, source_name)` makes a problem of a row. Held-out uids follow the training uids.
    """

    def read(source: Source) -> list[Problem]:
        return [to_problem(index, row, name_of(source)) for index, row in enumerate(read_rows(source))]

    return split_sources(data, heldout, seed, read)


def split_sources(
    data: Source,
    heldout: Heldout,
    seed: int,
    read: Callable[[Source], list[Problem]],
    key: Callable[[Problem], str] = prompt_key,
) -> tuple[list[Problem], list[Problem]]:
    """Return (train, held-out) of what `read` makes of a source: split by count or fraction, or a source of its own."""
    problems = read(data)
    if isinstance(heldout, int | float):
        return split(problems, heldout, seed, key)
    others = read(heldout)
    trained = {key(problem): problem.uid for problem in problems}
    shared = [problem.uid for problem in others if key(problem) in trained]
    if shared:
        twin = trained[key(others[shared[0]])]
        raise InputError(f"{name_of(heldout)}: row {shared[0]} has the prompt of row {twin} of {name_of(data)} "
                         f"({len(shared)} such rows): remove them from one of the two")  # fmt: skip
    return problems, [Problem(len(problems) + other.uid, other.prompt, other.columns) for other in others]


def _num_heldout(heldout: int | float, num_problems: int) -> int:
    if isinstance(heldout, bool) or not isinstance(heldout, int | float) or not 0 <= heldout < float("inf"):
        raise InputError(f"heldout={heldout!r}: must be a count (an integer from 0) or a fraction below 1.0")
    if isinstance(heldout, int):
        return heldout
    if heldout >= 1:
        raise InputError(f"heldout={heldout}: a fraction must be below 1.0; for a count, write an integer")
    return max(1, round(heldout * num_problems)) if heldout else 0


def _digest(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()


def _check_prompt(prompt: Any, place: str) -> None:
    """Raise InputError unless the prompt is text, or chat messages, that say something."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError(f"{place} is empty; remove the row or fill it in")
        return
    form = 'text or a list of {"role": text, "content": text}'
    if not isinstance(prompt, list):
        raise InputError(f"{place} is a {type(prompt).__name__} ({prompt!r:.60}); it must be {form}")
    if not prompt:
        raise InputError(f"{place} is an empty list; it must be {form}")
    for number, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError(f"{place}: message {number} is {message!r:.60}; it must have text as role and content")
    if not any(message["content"].strip() for message in prompt):
        raise InputError(f"{place}: every message is empty; remove the row or fill it in")
