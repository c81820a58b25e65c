"""Recipes: short configurations that come with logpi, found by name and put together with the options given."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from logpi.config import Config, make_config, merge, read_toml
from logpi.errors import InputError, did_you_mean


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with logpi."""
    folder = resources.files("logpi") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe, or of a path to one's own. Raises InputError with the nearest name."""
    if name.endswith(".toml"):
        return Path(name).expanduser()
    if name not in recipe_names():
        raise InputError(f'unknown recipe "{name}".{did_you_mean(name, recipe_names())} Or give a FILE.toml.')
    return Path(str(resources.files("logpi") / "recipes" / f"{name}.toml"))


def recipe_header(name: str) -> str:
    """Return the comment at the head of a recipe: command, expected score, time, hardware."""
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return "\n".join(line.lstrip("# ") for line in head)


def resolve(recipe: str | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a recipe or file, put overrides on top, check everything. Without a recipe the overrides are all."""
    if recipe is None:
        return make_config(overrides or {}, "the options given")
    path = recipe_path(recipe)
    values = read_toml(path)
    make_config({"recipe": path.stem, **values}, str(path))  # so that an error names the file where it is the file's
    return make_config(merge({"recipe": path.stem, **values}, overrides or {}), f"{path.name} with the options given")
