"""What both sides of `seconds_to_score.py` share: the clock, the check, the answer."""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from side_by_side import ANSWER

from logpi import api
from logpi.build import task_of
from logpi.config import Config
from logpi.overrides import split_overrides
from logpi.tasks import Task

SET_ASIDE = 120  # problems that score trials of learning rates


def wanted(asked: dict[str, Any]) -> tuple[Config, Task]:
    """Return the recipe with what was asked, and its task; in a trial, scored by problems set aside."""
    _, changes = split_overrides(asked["fixed"])
    numbers = {
        "seed": asked["seed"],
        "policy": {"model": asked["model"]},
        "rollout": {"num_prompts": asked["prompts"], "num_generations": asked["generations"]},
        "learner": {"learning_rate": asked["rate"]},
    }
    config = api.resolve(asked["task"], api.merge(changes, numbers))
    task = replace(task_of(config), draws=asked["draws"])
    if "trial_steps" in asked:
        problems = random.Random(0).sample(task.train, len(task.train))
        task = replace(task, train=problems[SET_ASIDE:], heldout=problems[:SET_ASIDE])
    return config, task


class Clock:
    """Seconds since a process began, evaluations left out; when the target held at two checks in a row."""

    def __init__(self, asked: dict[str, Any]):
        self.asked, self.evaluating = asked, 0.0
        self.startup: float | None = None
        self.completions = self.tokens = 0
        self.scores: list[float] = []
        self.passed: dict[str, Any] | None = None
        self.held = False
        self.every = asked.get("trial_steps", asked["every"])

    def seconds(self) -> float:
        return time.time() - self.asked["start"] - self.evaluating

    def begin(self) -> None:
        """The first step begins."""
        self.startup = self.startup or self.seconds()

    def check(self, evaluate: Callable[[], Any]) -> bool:
        """Evaluate, off the clock; return whether this side is done, passed or out of time."""
        at, start = self.seconds(), time.time()
        found = evaluate()
        self.evaluating += time.time() - start
        self.scores.append(round(found.score, 3))
        if "trial_steps" in self.asked:
            return True
        if found.low < self.asked["target"]:
            self.passed = None
        elif self.passed is not None:
            self.held = True
        else:
            self.passed = {"seconds": at, "completions": self.completions, "tokens": self.tokens}
        return self.held or at > self.asked["limit"]

    def answer(self) -> None:
        """Print what was found."""
        passed = self.passed if self.held and self.passed is not None else {"seconds": None}
        found = {
            "completions": self.completions,
            "tokens": self.tokens,
            **passed,
            "startup": self.startup,
            "trained_seconds": self.seconds() - (self.startup or 0),
            "trained_completions": self.completions,
            "evaluating": self.evaluating,
            "scores": self.scores,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(ANSWER + json.dumps(found), flush=True)
