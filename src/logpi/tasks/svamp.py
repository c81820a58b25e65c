"""SVAMP: one-step word problems with varied wording and a numeric answer (Patel et al. 2021)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from logpi.errors import InputError, did_you_mean
from logpi.tasks.answers import NUMBER, last_number, last_number_in, number_in, strict
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, cell, chat, check_template, load_split, place_of, prompt_text
from logpi.tasks.rewarding import Completion, as_reward, completion_text

PARTIAL_CREDIT = 0.2  # of `graded`: a sum, difference, product or quotient of two numbers of the question


def graded(
    completions: Sequence[Completion], answer: Sequence[str], numbers: Sequence[list[str]], **_: Any
) -> list[float]:
    """Give 1 where the last number is the answer, 0.2 where one operation on two numbers of the question gives it. A
    small model seldom comes to an answer at first: it repeats a number of the question."""
    right = last_number(completions, answer)
    found = [last_number_in(completion_text(c)) for c in completions]
    return [full or PARTIAL_CREDIT * (n in _results(given)) for full, n, given in zip(right, found, numbers)]


def _results(given: list[str]) -> set[Fraction]:
    """Return what one operation on two of the numbers can give."""
    values = [number for number in map(number_in, given) if number is not None]
    results: set[Fraction] = set()
    for a, b in itertools.permutations(values, 2):
        results |= {a + b, a - b, a * b} | ({a / b} if b else set())
    return results


REWARDS = {"last_number": last_number, "strict": strict, "graded": graded}


def svamp(
    data: Source,
    heldout: Heldout = 0.2,
    seed: int = 0,
    template: str = "{question} Answer with the number only.",
    reward: str = "last_number",
) -> Task:
    """Return the task of rows {"Body", "Question", "Answer"}; `heldout` is a count, a fraction or another source."""
    check_template(template, "question")
    if reward not in REWARDS:
        raise InputError(f'reward="{reward}": no such reward of svamp.{did_you_mean(str(reward), REWARDS)}')

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        body = _ended(cell(row, "Body", index, source_name, str), ".")
        question = _ended(cell(row, "Question", index, source_name, str), "?")
        answer = cell(row, "Answer", index, source_name, int | float)
        if not math.isfinite(answer):
            raise InputError(f'{place_of(row, index, source_name)}: "Answer" is {answer}; it must be a finite number')
        text = f"{int(answer)}" if answer == int(answer) else f"{answer}"
        asked = f"{body} {question}".strip()
        columns = {"answer": text, "numbers": NUMBER.findall(asked)}
        return Problem(index, chat(template.format(question=asked)), columns)

    train, held = load_split(data, heldout, seed, to_problem)
    examples = [(prompt_text(problem.prompt), problem.columns["answer"]) for problem in train[:8]]
    metrics = [as_reward(last_number), as_reward(strict)]
    return Task("svamp", train, held, [as_reward(REWARDS[reward])], metrics, examples=examples, solution="answer")


def _ended(sentence: str, mark: str) -> str:
    """Return the sentence with one mark at its end: some rows have none, and some two full stops."""
    sentence = re.sub(r"[. ]+$", ".", sentence.strip())
    return sentence if not sentence or sentence.endswith((".", "?", "!")) else sentence + mark
