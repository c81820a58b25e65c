"""GSM8K: grade-school word problems with worked solutions that end with "#### number" (Cobbe et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from logpi.errors import InputError
from logpi.tasks.answers import last_number, number_in
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, cell, chat, check_template, load_split, place_of, prompt_text
from logpi.tasks.rewarding import Completion, as_reward, completion_text

CALCULATION = re.compile(r"<<[^>]*>>")  # the data's calculator marks: 48/2 = <<48/2=24>>24
TEMPLATE = "{question}\nThink step by step, and end with #### and the number."


def gsm8k(data: Source, heldout: Heldout = 0.1, seed: int = 0, template: str = TEMPLATE) -> Task:
    """Return the task of rows {"question", "answer"}; `heldout` is a count, a fraction or another source."""
    check_template(template, "question")

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        question = cell(row, "question", index, source_name, str).strip()
        solution, marker, answer = cell(row, "answer", index, source_name, str).rpartition("####")
        if not marker or number_in(answer) is None:
            raise InputError(
                f'{place_of(row, index, source_name)}: "answer" must end with "#### number", not {answer[-40:]!r}'
            )
        answer = answer.strip()
        solution = f"{CALCULATION.sub('', solution).strip()}\n#### {answer}"
        return Problem(index, chat(template.format(question=question)), {"answer": answer, "solution": solution})

    train, held = load_split(data, heldout, seed, to_problem)
    examples = [(prompt_text(problem.prompt), problem.columns["solution"]) for problem in train[:8]]
    metrics = [as_reward(last_number), as_reward(marked_number)]
    return Task("gsm8k", train, held, [as_reward(last_number)], metrics, examples=examples, solution="solution")


def marked_number(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """Give 1 where the completion ends with "#### " and the answer."""
    ends = [completion_text(text).rpartition("####") for text in completions]
    right = last_number([end for _, _, end in ends], answer)
    return [float(mark != "" and number_in(end) is not None and value) for (_, mark, end), value in zip(ends, right)]
