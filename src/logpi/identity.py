"""What a run is made of besides its configuration: data, weights, tokenizer, rewards, and the machine it runs on.

Recorded when a run begins, compared when it goes on. Other data, weights or tokenizer make it another run: refused.
Another machine or library may round differently, other reward code may score differently: said, and recorded.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import platform
import re
from collections.abc import Iterable
from typing import Any

from logpi.errors import InputError
from logpi.platforms import processor
from logpi.tasks.base import Problem, Reward, Task

PACKAGES = (
    "logpi",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "gymnasium",
    "peft",
    "sacrebleu",
    "py3langid",
    "reasoning-gym",
)


def fingerprint(content: Any) -> str:
    """Return 16 hex digits of the content's SHA-256."""
    text = json.dumps(content, sort_keys=True, default=lambda value: re.sub(r" at 0x[0-9a-f]+", "", str(value)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_task(task: Task) -> dict[str, str]:
    """Return the fingerprints of a task: its problems, and the source of its rewards and metrics or environment."""
    makers = [] if task.environment is None else [Reward("environment", task.environment)]
    return {
        "data": fingerprint([_rows(task.train), _rows(task.heldout)]),
        "rewards": fingerprint([_source(reward) for reward in (*task.rewards, *task.metrics, *makers)]),
    }


def of_tokenizer(tokenizer: Any) -> str:
    """Return the fingerprint of what turns text into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return fingerprint([backend.to_str() if backend else tokenizer.get_vocab(), tokenizer.chat_template])


def of_machine(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Return what the bits of a result may depend on besides the run itself."""
    machine = {"processor": processor(), "system": platform.system(), "device": device, "dtype": dtype}
    return {**machine, "threads": threads, "python": platform.python_version(), **_versions()}


def check_same_run(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Compare fingerprints of a run's first start with today's; return notes. Raises InputError where it is another."""
    changed = [name for name in before if before[name] != now.get(name)]
    if fatal := [name for name in changed if name != "rewards"]:
        raise InputError(
            f"the run began with other {' and '.join(fatal)} (fingerprint "
            f"{', '.join(f'{before[name]}, now {now.get(name)}' for name in fatal)}); restore what it began with, "
            "or go on as a new run with --fork STEP, or start one with another --run"
        )
    return ["the code of the rewards has changed since the run began"] if changed else []


def machine_notes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a note where the machine is not the one that the run began on."""
    changed = [f"{name} {before[name]} → {now.get(name)}" for name in before if before[name] != now.get(name)]
    if not changed:
        return []
    return [f"not the machine that the run began on ({'; '.join(changed)}): values stay valid, bits may differ"]


def _rows(problems: Iterable[Problem]) -> list[Any]:
    return [[problem.uid, problem.prompt, dict(problem.columns)] for problem in problems]


def _source(reward: Reward) -> list[Any]:
    function = getattr(reward.function, "func", reward.function)
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # built in, or typed into an interpreter
        text = getattr(function, "__qualname__", type(function).__name__)
    return [reward.name, reward.weight, text]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
