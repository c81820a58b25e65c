"""SVAMP: one-step word problems with varied wording and a numeric answer (Patel et al. 2021)."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import Any

from logpi.errors import InputError, did_you_mean
from logpi.tasks.answers import NUMBER, last_number, number_in, strict
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, cell, chat, check_template, load_split, prompt_text
from logpi.tasks.rewarding import Completion, as_reward, completion_text

# a op b = c, the last one in a text; × may be written x or *, ÷ as /
NUMERAL = r"([0-9]+(?:\.[0-9]+)?)"
EQUATION = re.compile(rf"{NUMERAL}\s*([-+*/x×÷−])\s*{NUMERAL}\s*=\s*\$?{NUMERAL}")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
SPELLINGS = str.maketrans({"x": "*", "×": "*", "÷": "/", "−": "-"})
ATTEMPT, TRUE_EQUATION = 0.1, 0.3  # of `graded`


def graded(
    completions: Sequence[Completion], answer: Sequence[str], numbers: Sequence[list[str]], **_: Any
) -> list[float]:
    """Give 1 where the last number is the answer; else 0.3 for a last equation that is true and has two numbers of the
    question on its left, 0.1 where it is not true. For models that seldom come to an answer at first."""
    texts = [completion_text(c) for c in completions]
    right = last_number(completions, answer)
    return [max(full, _attempt(text, given)) for text, full, given in zip(texts, right, numbers)]


def _attempt(text: str, given: list[str]) -> float:
    found = EQUATION.findall(text)
    if not found:
        return 0.0
    left, sign, right, result = found[-1]
    a, b, c = number_in(left), number_in(right), number_in(result)
    known = {number_in(number) for number in given}
    if a is None or b is None or c is None or not {a, b} <= known:
        return 0.0
    sign = sign.translate(SPELLINGS)
    is_true = not (sign == "/" and b == 0) and OPERATIONS[sign](a, b) == c
    return TRUE_EQUATION if is_true else ATTEMPT


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
            raise InputError(f'{source_name}: row {index}: "Answer" is {answer}; it must be a finite number')
        text = f"{int(answer)}" if answer == int(answer) else f"{answer}"
        asked = f"{body} {question}".strip()
        columns = {"answer": text, "numbers": NUMBER.findall(asked)}
        return Problem(index, chat(template.format(question=asked)), columns)

    train, held = load_split(data, heldout, seed, to_problem)
    examples = [(prompt_text(problem.prompt), problem.columns["answer"]) for problem in train[:8]]
    metrics = [as_reward(last_number), as_reward(strict)]
    return Task("svamp", train, held, [as_reward(REWARDS[reward])], metrics, examples=examples)


def _ended(sentence: str, mark: str) -> str:
    """Return the sentence with one mark at its end: some rows have none, and some two full stops."""
    sentence = re.sub(r"[. ]+$", ".", sentence.strip())
    return sentence if not sentence or sentence.endswith((".", "?", "!")) else sentence + mark
