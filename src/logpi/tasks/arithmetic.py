"""Addition of two small integers, split by unordered pair, so that 5+3 is not a held-out twin of a trained 3+5."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from logpi.errors import InputError, did_you_mean
from logpi.tasks.answers import last_number_in
from logpi.tasks.base import Problem, Task
from logpi.tasks.problems import chat, check_template, prompt_text, split
from logpi.tasks.rewarding import Completion, as_reward, completion_text

PARTIAL_CREDIT = 0.2  # of `graded`: the right number last, but not alone
NUM_BEYOND_RANGE = 100
NUM_EXAMPLES = 8


def addition(
    max_operand: int = 20,
    num_heldout: int = 120,
    seed: int = 0,
    template: str = "What is {a}+{b}?",
    reward: str = "strict",
) -> Task:
    """Return the task a+b for every 0 ≤ a, b ≤ max_operand, in both orders.

    At least `num_heldout` problems are held out (one more where the last pair has two orders). The probe
    `beyond_range` has an operand in (max_operand, 2·max_operand + 10].
    """
    if not isinstance(max_operand, int) or not 1 <= max_operand <= 1000:
        raise InputError(f"max_operand={max_operand!r}: must be an integer from 1 to 1000")
    if not isinstance(num_heldout, int):
        raise InputError(f"num_heldout={num_heldout!r}: must be an integer")
    if reward not in REWARDS:
        raise InputError(f'reward="{reward}": no such reward of addition.{did_you_mean(str(reward), REWARDS)}')
    check_template(template, "a", "b")
    pairs = [(a, b) for a in range(max_operand + 1) for b in range(max_operand + 1)]
    random.Random(seed).shuffle(pairs)  # so that the first problems of a side are a fair sample of it
    problems = [_problem(a * (max_operand + 1) + b, a, b, template) for a, b in pairs]
    train, heldout = split(problems, num_heldout, seed, key=_unordered_pair)
    return Task(
        name="addition",
        train=train,
        heldout=heldout,
        rewards=[as_reward(REWARDS[reward])],
        metrics=[as_reward(strict), as_reward(last_integer)],
        probes={"beyond_range": _beyond_range(max_operand, seed, template)},
        examples=[(prompt_text(problem.prompt), problem.columns["answer"]) for problem in train[:NUM_EXAMPLES]],
        solution="answer",
    )


def strict(
    completions: Sequence[Completion], a: Sequence[int], b: Sequence[int], answer: Sequence[str], **_: Any
) -> list[float]:
    """Give 1 where the completion is the whole answer and nothing else: "17", or the equation asked for with its right
    side, "11 + 6 = 17"; white space around the parts and a closing full stop don't count."""
    return [
        float(re.fullmatch(rf"\s*({x}\s*\+\s*{y}\s*=\s*)?{gold}\.?\s*", completion_text(text)) is not None)
        for text, x, y, gold in zip(completions, a, b, answer)
    ]


def last_integer(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """Give 1 where the last number in the completion is the answer."""
    return [float(last_number_in(completion_text(text)) == int(gold)) for text, gold in zip(completions, answer)]


def graded(
    completions: Sequence[Completion], a: Sequence[int], b: Sequence[int], answer: Sequence[str], **_: Any
) -> list[float]:
    """Give 1 for the answer alone, 0.2 where it is the last number of more text, else 0."""
    whole, last = strict(completions, a, b, answer), last_integer(completions, answer)
    return [max(exact, PARTIAL_CREDIT * right) for exact, right in zip(whole, last)]


def _problem(uid: int, a: int, b: int, template: str) -> Problem:
    return Problem(uid, chat(template.format(a=a, b=b)), {"a": a, "b": b, "answer": str(a + b)})


def _unordered_pair(problem: Problem) -> str:
    return "{}+{}".format(*sorted((problem.columns["a"], problem.columns["b"])))


def _beyond_range(max_operand: int, seed: int, template: str) -> list[Problem]:
    top = 2 * max_operand + 10
    pairs = [(a, b) for a in range(top + 1) for b in range(top + 1) if max(a, b) > max_operand]
    chosen = random.Random(seed).sample(pairs, NUM_BEYOND_RANGE)
    first_uid = (max_operand + 1) ** 2
    return [_problem(first_uid + index, a, b, template) for index, (a, b) in enumerate(chosen)]


REWARDS = {"strict": strict, "last_integer": last_integer, "graded": graded}
