"""Every generator of reasoning-gym by its name, its answers scored by its own score_answer (Stojanovski et al. 2025).

Problems are made in a child process with a fixed hash seed and global generator: a few generators go through sets, or
draw from it, so that here the same seed could give other problems in the next run. Answers are scored in child
processes with a time limit, and what could call a function never gets to the scorers that evaluate an answer as Python.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from logpi.errors import InputError, did_you_mean, missing_extra
from logpi.randomness import Stream, integer_seed
from logpi.tasks.base import Problem, Task
from logpi.tasks.problems import chat, check_template, prompt_text, split
from logpi.tasks.rewarding import as_reward

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MATHEMATICS = {"Abs", "Integral", "acos", "asin", "atan", "cos", "cosh", "cot", "csc", "exp", "ln", "log", "sec", "sin",
               "sinh", "sqrt", "tan", "tanh"}  # fmt: skip
WORDS = re.compile(r"[\w ]*")  # what a string may hold: sympy would evaluate it in its turn
ARITHMETIC = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Call, ast.BinOp, ast.UnaryOp,
    ast.operator, ast.unaryop,
)  # fmt: skip


def reasoning_gym(
    dataset: str,
    parameters: Mapping[str, Any] | None = None,
    size: int = 500,
    heldout: int | float = 0.2,
    seed: int = 0,
    template: str = "{question}",
) -> Task:
    """Return the task of `size` problems of a generator with its own `parameters`; `heldout` is a count or a fraction,
    and equal questions fall on one side. The answer is what stands in the last <answer>…</answer>, else the whole text.
    """
    check_template(template, "question")
    parameters = dict(parameters or {})
    package = _package()
    _check(package, dataset, parameters, size)
    entries = _entries(dataset, parameters, size, integer_seed(seed, Stream.ENVIRONMENT))
    problems = [
        Problem(
            index,
            chat(template.format(question=entry["question"])),
            {"dataset": dataset, "parameters": parameters, **entry},
        )
        for index, entry in enumerate(entries)
    ]
    train, held = split(problems, heldout, seed)
    reward = as_reward(package.score_answer)
    examples = [(prompt_text(p.prompt), p.columns["answer"]) for p in train[:8] if p.columns["answer"]]
    return Task(f"reasoning_gym {dataset}", train, held, [reward], [reward], examples=examples, solution="answer")


def _package() -> Any:
    """Return what needs the package. Raises InputError where it is missing."""
    try:
        return importlib.import_module("logpi.tasks.generators")
    except ImportError:
        raise missing_extra("reasoning-gym", "tasks", 'the task "reasoning_gym"') from None


def _check(package: Any, dataset: str, parameters: dict[str, Any], size: int) -> None:
    """Raise InputError for an unknown generator, or for parameters that it does not take."""
    known = package.DATASETS
    if dataset not in known:
        raise InputError(f'reasoning_gym has no dataset "{dataset}".{did_you_mean(str(dataset), known)}')
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"size={size!r}: must be a count of problems, from 1")
    names = {field.name for field in dataclasses.fields(known[dataset][1])} - {"seed", "size"}
    for name in parameters:
        if name not in names:
            raise InputError(f'dataset "{dataset}" has no parameter "{name}".{did_you_mean(name, names)}')
    try:
        package.generator(dataset, json.dumps(parameters | package.FIRST))
    except Exception as error:
        raise InputError(f'dataset "{dataset}" does not take parameters={parameters}: {_said(error)}') from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:200]}"


def _entries(dataset: str, parameters: dict[str, Any], size: int, seed: int) -> list[dict[str, Any]]:
    """Return question, answer and entry of each problem, made in a child process with the same hashes each time."""
    asked = json.dumps([dataset, parameters | {"seed": seed, "size": size}])
    program = "from logpi.tasks.generators import write_entries; write_entries()"
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    made = subprocess.run([sys.executable, "-c", program], input=asked, capture_output=True, text=True, env=environment)
    if made.returncode:
        last = made.stderr.strip().splitlines()[-1:] or ["no message"]
        raise InputError(f'dataset "{dataset}" could not be made with parameters={parameters}: {last[0][:200]}')
    return json.loads(made.stdout.splitlines()[-1])


# --- what an answer is ---------------------------------------------------------------------------------------------


def answer_in(text: str) -> str:
    """Return what stands in the last <answer>…</answer>, else the whole text."""
    answers = ANSWER.findall(text)
    return (answers[-1] if answers else text).strip()


def is_harmless(answer: str) -> bool:
    """Whether evaluating the answer calls nothing but mathematics.

    Without a parenthesis it calls nothing, and without a quotation mark it makes no text that is evaluated later. With
    one of them it must be numbers, names, quoted words, lists, arithmetic and calls of MATHEMATICS.
    """
    if not set(answer) & set("(\"'"):
        return True
    try:
        nodes = list(ast.walk(ast.parse(answer, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, ARITHMETIC) and _calls_nothing_else(node) for node in nodes)


def _calls_nothing_else(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in MATHEMATICS and not node.keywords
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return isinstance(node.value, str) and WORDS.fullmatch(node.value) is not None
    return True
