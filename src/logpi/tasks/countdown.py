"""Countdown: reach the target with + - * / and parentheses, each number used exactly once."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.problems import Heldout, cell, chat, check_template, load_split, place_of, prompt_text
from logpi.tasks.rewarding import Completion, as_reward, completion_text

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
EXPRESSION = re.compile(r"[0-9+\-*/() ]{1,200}")  # no names, points or underscores reach the parser
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TEMPLATE = (
    "Using each of the numbers {numbers} exactly once, write an expression that equals {target}. "
    "Use only + - * / and parentheses. Answer with the expression only."
)


def countdown(data: Source, heldout: Heldout = 0.1, seed: int = 0, template: str = TEMPLATE) -> Task:
    """Return the task of rows {"numbers": [..], "target": n}; `heldout` is a count, a fraction or another source."""
    check_template(template, "numbers", "target")

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        numbers = cell(row, "numbers", index, source_name, list)
        target = cell(row, "target", index, source_name, int)
        if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
            raise InputError(
                f'{place_of(row, index, source_name)}: "numbers" is {numbers!r:.60}; it must be integers from 0'
            )
        text = template.format(numbers=", ".join(map(str, numbers)), target=target)
        return Problem(index, chat(text), {name: row.get(name) for name in ("numbers", "target", "solution")})

    train, held = load_split(data, heldout, seed, to_problem)
    examples = [(prompt_text(p.prompt), p.columns["solution"]) for p in train[:8] if p.columns["solution"]]
    metrics = [as_reward(solved), as_reward(well_formed)]
    return Task("countdown", train, held, [as_reward(solved)], metrics, examples=examples, solution="solution")


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
