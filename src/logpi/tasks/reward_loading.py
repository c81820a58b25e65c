"""Reward functions by name: "path/to/file.py:function" or "module:function"."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from logpi.errors import InputError, did_you_mean
from logpi.tasks.base import Reward
from logpi.tasks.dataset import existing_file
from logpi.tasks.rewarding import as_reward

BUILT_IN = {"python_tests": "logpi.tasks.python_tests:python_tests"}


def load_reward(location: str, weight: float = 1.0) -> Reward:
    """Import the function that a location names, and return it as a reward. A bare name is one of ours: BUILT_IN."""
    location = BUILT_IN.get(location, location)
    place, _, name = location.rpartition(":")
    if not place or not name:
        ours = ", ".join(f'"{name}"' for name in BUILT_IN)
        raise InputError(f'reward "{location}": write "path/to/file.py:function", "module:function", or {ours}')
    module = module_of_file(place) if place.endswith(".py") else _module(place, name)
    if not hasattr(module, name):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f'reward "{location}": {place} has no function "{name}".{did_you_mean(name, functions)}')
    function = getattr(module, name)
    if not callable(function):
        raise InputError(f'reward "{location}": "{name}" is a {type(function).__name__}, not a function')
    return as_reward(function, weight)


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
