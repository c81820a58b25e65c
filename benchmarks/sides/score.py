"""What both sides of `seconds_to_score.py` share: the clock, the check, the answer."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from side_by_side import ANSWER


class Clock:
    """Seconds since a process began, evaluations left out; when the target held at two checks in a row."""

    def __init__(self, asked: dict[str, Any]):
        self.asked, self.evaluating = asked, 0.0
        self.startup: float | None = None
        self.completions = self.tokens = 0
        self.scores: list[float] = []
        self.passed: dict[str, Any] | None = None
        self.held = False

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
