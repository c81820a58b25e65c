"""SVAMP: one-step word problems with varied wording and a numeric answer (Patel et al. 2021)."""

from __future__ import annotations

import math
import re

from logpi.errors import InputError, did_you_mean
from logpi.tasks.answers import last_number, strict
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, cell, chat, check_template, load_split, prompt_text
from logpi.tasks.rewarding import as_reward

REWARDS = {"last_number": last_number, "strict": strict}


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
        return Problem(index, chat(template.format(question=f"{body} {question}".strip())), {"answer": text})

    train, held = load_split(data, heldout, seed, to_problem)
    examples = [(prompt_text(problem.prompt), problem.columns["answer"]) for problem in train[:8]]
    metrics = [as_reward(last_number), as_reward(strict)]
    return Task("svamp", train, held, [as_reward(REWARDS[reward])], metrics, examples=examples)


def _ended(sentence: str, mark: str) -> str:
    """Return the sentence with one mark at its end: some rows have none, and some two full stops."""
    sentence = re.sub(r"[. ]+$", ".", sentence.strip())
    return sentence if not sentence or sentence.endswith((".", "?", "!")) else sentence + mark
