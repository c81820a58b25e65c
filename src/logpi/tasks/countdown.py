"""Countdown: reach the target with + - * / and parentheses, each number used exactly once."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Prompt, Task
from logpi.tasks.countdown_tries import MAX_NUMBERS, Tries
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, cell, chat, check_template, load_split, place_of, prompt_text
from logpi.tasks.rewarding import Completion, as_reward, completion_text

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
EXPRESSION = re.compile(r"[0-9+\-*/() ]{1,200}")  # no names, points or underscores reach the parser
CEILING = 2  # of a try's steps, in units of the highest target: what is larger seldom leads back to one
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TEMPLATE = (
    "Using each of the numbers {numbers} exactly once, write an expression that equals {target}. "
    "Use only + - * / and parentheses. Answer with the expression only."
)


def countdown(
    data: Source,
    heldout: Heldout = 0.1,
    seed: int = 0,
    template: str = TEMPLATE,
    tries: int = 0,
    puzzles: int = 1,
) -> Task:
    """Return the task of rows {"numbers": [..], "target": n}; `heldout` is a count, a fraction or another source.

    What is imitated is the row's "solution". With `tries` it is up to so many attempts, a line each, the last of which
    comes to the target, and then the answer. Each row then makes `puzzles` of them: its own, and others of its numbers
    in another order, for targets that they reach as well, so that no answer can be learnt by heart. Held-out puzzles
    are then completed by draws: a search that goes by what is likeliest tries the same again and again.
    """
    check_template(template, "numbers", "target")
    for name, value, least in (("tries", tries, 0), ("puzzles", puzzles, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r}: must be an integer from {least}")
    if puzzles > 1 and not tries:
        raise InputError(f"puzzles={puzzles}: only tries can be made up; set tries too, or puzzles to 1")

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        numbers = cell(row, "numbers", index, source_name, list)
        target = cell(row, "target", index, source_name, int)
        if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
            raise InputError(
                f'{place_of(row, index, source_name)}: "numbers" is {numbers!r:.60}; it must be integers from 0'
            )
        if tries and len(numbers) > MAX_NUMBERS:
            place = place_of(row, index, source_name)
            raise InputError(f"{place}: tries are for up to {MAX_NUMBERS} numbers, not {len(numbers)}; set tries to 0")
        columns = {name: row.get(name) for name in ("numbers", "target", "solution")}
        return Problem(index, _asked(template, numbers, target), columns)

    train, held = load_split(data, heldout, seed, to_problem)
    if tries:
        train = _in_tries(train, held, tries, puzzles, seed, template)
    examples = [(prompt_text(p.prompt), p.columns["solution"]) for p in train[:8] if p.columns["solution"]]
    metrics = [as_reward(solved), as_reward(well_formed)]
    rewards = [as_reward(solved)]
    return Task("countdown", train, held, rewards, metrics, examples=examples, solution="solution", draws=tries > 0)


def solved(
    completions: Sequence[Completion], numbers: Sequence[list[int]], target: Sequence[int], **_: Any
) -> list[float]:
    """Give 1 where the expression uses each number exactly once and equals the target."""
    return [float(_value(text, given, goal) == goal) for text, given, goal in zip(completions, numbers, target)]


def well_formed(
    completions: Sequence[Completion], numbers: Sequence[list[int]], target: Sequence[int], **_: Any
) -> list[float]:
    """Give 1 where the expression can be evaluated and uses each number exactly once, whatever it equals."""
    return [float(_value(text, given, goal) is not None) for text, given, goal in zip(completions, numbers, target)]


def expression_in(text: str) -> str:
    """Return what stands in the last <answer>…</answer>, else the last line that is not blank."""
    answers = ANSWER.findall(text)
    lines = text.strip().splitlines()
    return answers[-1].strip() if answers else lines[-1].strip() if lines else ""


def evaluate(expression: str) -> tuple[Fraction, list[int]] | None:
    """Return the exact value of an arithmetic expression and the numbers in it; None where it is not one."""
    if not EXPRESSION.fullmatch(expression):
        return None
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        return _evaluate(tree), list(_numbers(tree))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _asked(template: str, numbers: Sequence[int], target: int) -> Prompt:
    return chat(template.format(numbers=", ".join(map(str, numbers)), target=target))


def _in_tries(
    train: Sequence[Problem], held: Sequence[Problem], tries: int, puzzles: int, seed: int, template: str
) -> list[Problem]:
    """Return the problems with tries as their solutions, the row's own where none leads there in integers, and puzzles
    made up of their numbers; none that is held out."""
    size, kept_out = len(train) + len(held), {_key(problem.columns) for problem in held}
    targets = [problem.columns["target"] for problem in train]
    low, high = min(targets), max(targets)
    found = []
    for number, problem in product(range(puzzles), train):
        ways = Tries(CEILING * high, random.Random(f"{seed} {problem.uid} {number}"))
        columns = dict(problem.columns)
        if number:
            columns["numbers"] = ways.draw.sample(columns["numbers"], len(columns["numbers"]))
            solution = ways.puzzle(columns["numbers"], low, high)
            if solution is None:
                continue
            columns["target"] = solution.value
            if _key(columns) in kept_out:
                continue
        else:
            solution = ways.solution(columns["numbers"], columns["target"])
        if solution is not None:
            columns["solution"] = ways.text(columns["numbers"], solution, tries)
        prompt = _asked(template, columns["numbers"], columns["target"])
        found.append(Problem(problem.uid + number * size, prompt, columns, made_up=number > 0))
    return found


def _key(columns: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(columns["numbers"])), columns["target"]


def _value(completion: Completion, numbers: list[int], target: int) -> Fraction | None:
    expression, _, stated = expression_in(completion_text(completion)).partition("=")
    result = evaluate(expression)
    if result is None or stated.strip() not in ("", str(target)) or Counter(result[1]) != Counter(numbers):
        return None
    return result[0]


def _evaluate(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError(f"not arithmetic: {type(node).__name__}")


def _numbers(tree: ast.expr) -> Iterator[int]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))  # type: ignore[misc]
