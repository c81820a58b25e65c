"""Sides of a comparison, each a process of its own, timed in turns: medians, min-max, ratios of neighbours.

A side is a script under `sides/` that reads one JSON object a line, does that piece of work and answers with one line:
{"seconds": …, "tokens": …}. Only one works at a time; the machine's other noise falls on all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT = "products alone"  # the side that does nothing else: what could be reached
ANSWER = "ANSWER "  # before a side's answer: libraries print as they like


class Side:
    """One script, running in one interpreter."""

    def __init__(
        self,
        name: str,
        script: str,
        model: str,
        python: str = sys.executable,
        arguments: Sequence[str] = (),
        **environment: str,
    ):
        self.name = name
        command = [python, str(HERE / "sides" / script), model, *arguments]
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | offline | environment,
        )

    def do(self, work: Mapping[str, Any]) -> dict[str, Any]:
        """Have one piece of work done; return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise SystemExit(f"{self.name} ended without an answer: run sides/ by hand to see why")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(work: Any) -> None:
    """Answer one line after the other with what `work` returns for it; for the scripts under sides/."""
    for line in sys.stdin:
        print(ANSWER + json.dumps(work(json.loads(line))), flush=True)


def compare(sides: list[Side], work: Mapping[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
    """Do the work `rounds` times on each side in turns, or three times where one takes over 30 seconds; return each
    one's tokens a second, seconds, tokens, seconds of parts where it tells them (medians), and ratio: the median over
    rounds of the first side's tokens a second through this one's."""
    answers: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for side in sides:
        side.do(work | {"new_tokens": min(4, work.get("new_tokens", 4))})  # warm
    for done in range(rounds):
        if done == 3 and any(answer["seconds"] > 30 for found in answers.values() for answer in found):
            break
        for side in sides:
            answers[side.name].append(side.do(work))
    speeds = {name: [answer["tokens"] / answer["seconds"] for answer in found] for name, found in answers.items()}
    first = speeds[sides[0].name]
    return {
        name: {
            **found[-1],
            "rounds": len(found),
            "tokens_per_second": spread(speeds[name]),
            "seconds": spread([answer["seconds"] for answer in found]),
            "tokens": statistics.median(answer["tokens"] for answer in found),
            "parts": {
                part: statistics.median(answer["parts"][part] for answer in found) for part in found[0].get("parts", {})
            },
            "ratio": statistics.median(a / b for a, b in zip(first, speeds[name], strict=True)),
        }
        for name, found in answers.items()
    }


def spread(values: list[float]) -> list[float]:
    """Return median, least and greatest."""
    return [statistics.median(values), min(values), max(values)]


def shown(spread: list[float], unit: str = "") -> str:
    """Return "median (min-max)"."""
    median, low, high = (f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in spread)
    return f"{median}{unit} ({low}-{high})"


def report(result: Mapping[str, Any], output: Path | None) -> None:
    """Print what was found, with what it depends on, as JSON; write it to the file where one is named."""
    result = {"machine": machine(), **result}
    print(json.dumps(result))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    from logpi.device import resolve_dtype

    found = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": found[0],
        "cores": str(len(found)),
        "dtype": str(resolve_dtype("auto")).removeprefix("torch."),
        "python": platform.python_version(),
    } | {name: version(name) for name in ("logpi", "torch", "transformers")}
