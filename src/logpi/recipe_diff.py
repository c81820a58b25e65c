"""What differs between two configurations: `logpi recipes --diff A B`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from logpi import api
from logpi.config import Config, make_config
from logpi.errors import InputError
from logpi.run_folder import RunFolder, leaves


def recipe_diff(a: str, b: str) -> dict[str, Any]:
    """Return every configuration key that differs, defaults included, and both objectives where these differ.

    `a` and `b`: a recipe's name, a FILE.toml, or a run's folder each. Raises InputError for what is none of them.
    """
    configs = [_configured(name) for name in (a, b)]
    left, right = (leaves(config.plain()) for config in configs)
    different = [key for key in sorted(left | right) if left.get(key) != right.get(key)]
    first, second = (api.objective_of(config)["objective"] for config in configs)
    return {
        "differences": [{"key": key, "a": left.get(key), "b": right.get(key)} for key in different],
        **({} if first == second else {"objective": {"a": first, "b": second}}),
    }


def _configured(name: str) -> Config:
    """Return the configuration of a recipe, of a file, or of a run's folder."""
    folder = Path(name).expanduser()
    if name in api.recipe_names() or not folder.is_dir():
        return api.resolve(name)
    values = RunFolder(folder).read_json("config.json")
    if values is None:
        raise InputError(f"{name} is a folder without config.json; give a run's folder, a recipe's name or a FILE.toml")
    return make_config(values, str(folder / "config.json"))
