"""Options of the command line that change the configuration: --section.key value, and --smoke."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from logpi.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from logpi.config import Config


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words without `--section.key value`, and those as nested values. Raises InputError if unknown."""
    rest: list[str] = []
    overrides: dict[str, Any] = {}
    queue = iter(words)
    for word in queue:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or "." not in option:
            rest.append(word)
            continue
        path = option[2:].replace("-", "_")
        _check_known(option, path)
        if not equals:
            value = next(queue, "--")
            if value.startswith("--"):
                raise InputError(f"option {option} needs a value: {option} VALUE")
        _put(overrides, path.split("."), _parse(value))
    return rest, overrides


def smoke(config: Config) -> dict[str, Any]:
    """Return the changes that make a run small: two steps and all that surrounds them, in seconds.

    A model is replaced by a tiny one that knows nothing, so that a large one isn't loaded and another run's isn't
    needed; a new network gets the same shape. Scores then say nothing.
    """
    from logpi.config import merge

    small: dict[str, Any] = {
        "max_steps": 2,
        "rollout": {"num_generations": 4},
        "evaluation": {"num_problems": 4, "num_episodes": 4, "full_report": False},
    }
    if config.environment is not None:
        return small
    from logpi.policies.model_folder import TINY, TINY_ENCODER
    from logpi.policies.untrained import TINY_SHAPE

    small["rollout"] = {"max_completion_length": 8}
    if config.policy.model:
        small["policy"] = {"model": TINY_ENCODER if config.policy.kind == "encoder" else TINY}
    if config.sft is not None:
        shape = {} if config.sft.new is None else {"new": {"shape": TINY_SHAPE}}
        return merge(small, {"sft": {"batch_size": 2, **shape}})
    if config.pretrain is not None:  # its shape is that of policy.model, where one is named
        return merge(small, {"pretrain": {"batch_size": 2, "shape": None if config.policy.model else TINY_SHAPE}})
    overlong = config.reward.overlong_tokens and min(config.reward.overlong_tokens, 8)
    rollout = {"num_prompts": 2, "num_generations": 4, "num_spare_prompts": min(config.rollout.num_spare_prompts, 2)}
    return merge(small, {"rollout": rollout, "reward": {"overlong_tokens": overlong}})


def _check_known(option: str, path: str) -> None:
    """Raise InputError unless the path leads to a field; what lies under `task` is the task's own business."""
    from logpi.config import Config

    known = list(_field_paths(Config))
    if path not in known and not path.startswith(("task.", "algorithm.options.")):
        options = ["--" + name.replace("_", "-") for name in known if "." in name]
        raise InputError(f"unknown option {option}.{did_you_mean(option.replace('_', '-'), options)}")


def _field_paths(section: Any, above: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield above + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if hasattr(kind, "model_fields"):
                yield from _field_paths(kind, f"{above}{name}.")


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[path[-1]] = value


def _parse(text: str) -> Any:
    """Return a number, true, false, null or a list as such, anything else as the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
