"""Reward functions and environments by name: "path/to/file.py:name" or "module:name"."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from logpi.errors import InputError, did_you_mean
from logpi.tasks.base import Reward
from logpi.tasks.dataset import existing_file
from logpi.tasks.rewarding import as_reward

BUILT_IN = {"python_tests": "logpi.tasks.python_tests:python_tests"}


def load_reward(location: str, weight: float = 1.0) -> Reward:
    """Import the function that a location names, and return it as a reward. A bare name is one of ours: BUILT_IN."""
    ours = ", or " + ", ".join(f'"{name}"' for name in BUILT_IN)
    return as_reward(load_callable(BUILT_IN.get(location, location), "reward", "function", ours), weight)


def load_callable(location: str, purpose: str, kind: str, otherwise: str = "") -> Callable[..., Any]:
    """Import what "path/to/file.py:name" or "module:name" names. Raises InputError with the nearest name."""
    place, _, name = location.rpartition(":")
    if not place or not name:
        forms = f'"path/to/file.py:{kind}", "module:{kind}"'
        raise InputError(
            f'{purpose} "{location}": write {forms if otherwise else forms.replace(", ", " or ")}{otherwise}'
        )
    module = module_of_file(place) if place.endswith(".py") else _module(place, name)
    if not hasattr(module, name):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f'{purpose} "{location}": {place} has no {kind} "{name}".{did_you_mean(name, callables)}')
    found = getattr(module, name)
    if not callable(found):
        raise InputError(f'{purpose} "{location}": "{name}" is a {type(found).__name__}, not a {kind}')
    return found


def module_of_file(place: str) -> ModuleType:
    """Import a Python file under a name of its own. Raises InputError with what it raised."""
    path = existing_file(place).resolve()
    unique = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickle look their module up
    sys.path.insert(0, str(path.parent))  # as for a script: the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[unique]
        raise _raised(place, error) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
    return module


def _module(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        beside = Path(f"{place.replace('.', '/')}.py")
        hint = f'; there is a file: write "{beside}:{name}"' if beside.is_file() else ""
        raise _raised(place, error, hint) from error


def _raised(place: str, error: BaseException, hint: str = "") -> InputError:
    return InputError(f"{place}: importing it raised {type(error).__name__}: {str(error)[:200]}{hint}")
