"""What needs the package reasoning-gym: its generators, the problems they make, the scores they give.

Imported where there is such a task, and in child processes: those that make problems, those that score answers.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from reasoning_gym.composite import DatasetSpec  # pyright: ignore[reportMissingImports]
from reasoning_gym.factory import DATASETS, create_dataset  # pyright: ignore[reportMissingImports]

from logpi.tasks.isolation import untrusted
from logpi.tasks.reasoning_gym import answer_in, is_harmless
from logpi.tasks.rewarding import Completion, completion_text

# Their scorers pass the answer to eval, or to sympy, which does (of version 0.1.25; a test looks for others).
EVALUATING = {
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
    "simple_integration", "spiral_matrix", "string_insertion",
}  # fmt: skip
FIRST = {"seed": 0, "size": 1}

__all__ = ["DATASETS", "EVALUATING", "entries_of", "generator", "score", "score_answer", "write_entries"]


@lru_cache(maxsize=8)
def generator(dataset: str, parameters: str) -> Any:
    """Return a generator with parameters that are given as JSON; it raises whatever it does not like about them."""
    options = json.loads(parameters)
    if dataset == "composite":
        options["datasets"] = [DatasetSpec(**{"weight": 1, "config": {}} | part) for part in options["datasets"]]
    return create_dataset(dataset, **options)


def write_entries() -> None:
    """Write the entries that standard input asks for to standard output, as JSON: what a child process does."""
    made = entries_of(*json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(made) + "\n")


def entries_of(dataset: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Return question, answer and entry (a Python literal, as JSON has no tuples) of each problem of a generator."""
    random.seed(parameters["seed"])
    np.set_printoptions(legacy="1.25")  # a number or text of NumPy's as a plain literal
    made = generator(dataset, json.dumps(parameters))
    entries = [made[index] for index in range(len(made))]
    rows = [{"question": e["question"], "answer": e["answer"], "entry": repr(e)} for e in entries]
    for row in rows:
        ast.literal_eval(row["entry"])  # raises ValueError for what is none
    return rows


@untrusted
def score_answer(
    completions: Sequence[Completion],
    dataset: Sequence[str],
    parameters: Sequence[dict[str, Any]],
    entry: Sequence[str],
    **_: Any,
) -> list[float]:
    """Give what the generator's own score_answer gives to each answer; 0 where it can't read it."""
    return [
        score(answer_in(completion_text(text)), name, options, content)
        for text, name, options, content in zip(completions, dataset, parameters, entry)
    ]


def score(answer: str, dataset: str, parameters: dict[str, Any], entry: str) -> float:
    """Return the score of one answer."""
    named = re.findall(r"\w+", json.dumps([dataset, parameters]))  # a composite names its parts
    if EVALUATING.intersection(named) and not is_harmless(answer):
        return 0.0
    scorer, content = generator(dataset, json.dumps(parameters | FIRST)), ast.literal_eval(entry)
    try:
        return float(scorer.score_answer(answer, content))
    except Exception:  # theirs, on a text that is no answer
        return 0.0
