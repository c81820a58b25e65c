"""What is asked and how it is scored: one file a task, and a table of their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from logpi.errors import InputError, did_you_mean
from logpi.tasks.arithmetic import addition
from logpi.tasks.base import Problem, Prompt, Reward, Task
from logpi.tasks.camrest import camrest
from logpi.tasks.countdown import countdown
from logpi.tasks.custom import custom
from logpi.tasks.demonstrations import demonstrations
from logpi.tasks.emails import emails
from logpi.tasks.gsm8k import gsm8k
from logpi.tasks.quatrains import quatrains
from logpi.tasks.reasoning_gym import reasoning_gym
from logpi.tasks.role_labelling import role_labelling
from logpi.tasks.sentiment import sentiment
from logpi.tasks.sonnets import sonnets
from logpi.tasks.svamp import svamp
from logpi.tasks.text import text
from logpi.tasks.translation import translation

__all__ = ["TASKS", "Problem", "Prompt", "Reward", "Task", "make_task"]

TASKS: dict[str, Callable[..., Task]] = {
    "addition": addition,
    "camrest": camrest,
    "countdown": countdown,
    "custom": custom,
    "demonstrations": demonstrations,
    "emails": emails,
    "gsm8k": gsm8k,
    "quatrains": quatrains,
    "reasoning_gym": reasoning_gym,
    "role_labelling": role_labelling,
    "sentiment": sentiment,
    "sonnets": sonnets,
    "svamp": svamp,
    "text": text,
    "translation": translation,
}


def make_task(name: str, **options: Any) -> Task:
    """Build a task by name; raise InputError for an unknown task, or an option unknown or missing."""
    if name not in TASKS:
        raise InputError(f'unknown task "{name}".{did_you_mean(name, TASKS)}')
    parameters = inspect.signature(TASKS[name]).parameters
    for option in options:
        if option not in parameters:
            raise InputError(f'task "{name}" has no option "{option}".{did_you_mean(option, parameters)}')
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise InputError(f'task "{name}" needs the option "{option}"')
    return TASKS[name](**options)
