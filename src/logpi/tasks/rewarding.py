"""The only room that calls reward functions, and holds what they return to one number (or None) per completion.

Functions have TRL's signature, `f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric,
environments, **columns) -> list[float | None]`, all by keyword, sync or async; `environments` only where there are any.
Beyond TRL: a function may take fewer arguments; True and False count as 1 and 0; NaN and infinity are refused.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from logpi.errors import InputError, NothingScoredError, RewardError, did_you_mean
from logpi.tasks.base import Prompt, Reward

Completion = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Failed:
    """Stands for a score in what a function in a child process gave: it raised, died or took too long."""

    reason: str


@dataclass(frozen=True)
class Scores:
    """What each reward function gave to each completion, and the weighted sum; None where none was applicable, or one
    failed and failures are excluded: then `failures` says why."""

    total: list[float | None]
    by_name: dict[str, list[float | None]]
    failures: dict[int, str] = field(default_factory=dict)  # index -> what failed, and how


def as_completions(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Completion]:
    """Return the texts as rewards expect them: strings, or one assistant message where the prompt is a chat."""
    return [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)]  # fmt: skip


def completion_text(completion: Completion) -> str:
    """Return the completion's text: the string, or the last message's content."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def as_reward(function: Callable[..., Any], weight: float = 1.0) -> Reward:
    """Return the function as a reward that bears its ``__name__``."""
    if not callable(function):
        raise InputError(f"reward {function!r:.60} is a {type(function).__name__}, not a function")
    inner = getattr(function, "func", function)  # functools.partial
    return Reward(getattr(inner, "__name__", type(inner).__name__), function, weight)


def score(
    rewards: Sequence[Reward],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, list[Any]],
    trainer_state: Any = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    environments: list[Any] | None = None,
    on_failure: str = "error",
) -> Scores:
    """Call every reward function on copies of the batch and return its scores.

    total_i = Σ_k weight_k · reward_k,i over the functions that gave completion i a number; None if none did.
    A function that raises, or gives something else than a number, is a RewardError; with on_failure="exclude" it is
    asked again for one completion at a time, and those that it fails on get no total. Never a silent 0.
    """
    _check_batch(rewards, prompts, completions, completion_ids, columns)
    if not completions:
        return Scores([], {reward.name: [] for reward in rewards})
    batch = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    extras = {"trainer_state": trainer_state, "log_extra": log_extra or _ignore, "log_metric": log_metric or _ignore}
    if environments is not None:
        extras["environments"] = environments
    by_name, failures = _scored(rewards, batch, extras, on_failure == "exclude")
    total = [None if i in failures else _total(rewards, by_name, i) for i in range(len(completions))]
    if len(failures) == len(total):
        raise RewardError(f"every completion of the batch failed to be scored; the first: {failures[0]}")
    if all(value is None for value in total):
        names = ", ".join(f'"{name}"' for name in by_name)
        raise NothingScoredError(
            f"reward {names}: None for each of the {len(total)} completions of the batch, so nothing can be learnt; "
            "return a number (0.0 for a miss) wherever the reward applies"
        )
    return Scores(total, by_name, failures)


def _scored(
    rewards: Sequence[Reward], batch: Mapping[str, Any], extras: Mapping[str, Any], exclude: bool
) -> tuple[dict[str, list[float | None]], dict[int, str]]:
    """Return what each function gave, by name, and what failed, by completion. Raises RewardError unless `exclude`."""
    num = len(batch["completions"])
    if not exclude:
        results = _call_all(rewards, batch, extras)
        return {r.name: _checked(r.name, result, num) for r, result in zip(rewards, results)}, {}
    by_name: dict[str, list[float | None]] = {}
    failures: dict[int, str] = {}
    for reward in rewards:
        values = _numbers_or_errors(reward, batch, extras)
        by_name[reward.name] = [None if isinstance(value, RewardError) else value for value in values]
        for index, value in enumerate(values):
            if isinstance(value, RewardError):
                failures.setdefault(index, str(value))
    return by_name, failures


def _numbers_or_errors(
    reward: Reward, batch: Mapping[str, Any], extras: Mapping[str, Any]
) -> list[float | RewardError | None]:
    """Return the function's score of each completion, or its error there. Where it fails on the batch as a whole, it is
    asked again for one completion at a time."""
    num = len(batch["completions"])
    try:
        results = _listed(reward.name, _call_all([reward], batch, extras)[0], num)
    except RewardError as error:
        if num == 1:
            return [error]
        singles = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(num)]
        return [value for single in singles for value in _numbers_or_errors(reward, single, extras)]
    return [_number_or_error(reward.name, value, index) for index, value in enumerate(results)]


def _number_or_error(name: str, value: Any, index: int) -> float | RewardError | None:
    try:
        return _number(name, value, index)
    except RewardError as error:
        return error


def _check_batch(rewards: Sequence[Reward], prompts: Any, completions: Any, completion_ids: Any, columns: Any) -> None:
    if not rewards:
        raise InputError("no reward function: a task needs at least one")
    names = [reward.name for reward in rewards]
    for reward in rewards:
        if names.count(reward.name) > 1:
            raise InputError(f'two reward functions are named "{reward.name}"; rename one')
        if not math.isfinite(reward.weight):
            raise InputError(f'reward "{reward.name}": weight={reward.weight} must be a finite number')
    reserved = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
    if taken := reserved & set(columns):
        raise InputError(f'the column "{min(taken)}" has the name of an argument of every reward function; rename it')
    for name, values in {"prompts": prompts, "completion_ids": completion_ids, **columns}.items():
        if len(values) != len(completions):
            raise InputError(f'"{name}" has {len(values)} values for {len(completions)} completions')


def _call_all(rewards: Sequence[Reward], batch: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Any]:
    """Call the functions in order, then await the asynchronous ones together."""
    results: list[Any] = []
    try:
        for reward in rewards:
            results.append(_call(reward, batch, extras))
    except RewardError:
        for result in results:
            if inspect.iscoroutine(result):
                result.close()  # else Python warns that it was never awaited
        raise
    waiting = [index for index, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        awaited = _await_together([_named(rewards[index].name, results[index]) for index in waiting])
        for index, result in zip(waiting, awaited):
            results[index] = result
    return results


def _call(reward: Reward, batch: Mapping[str, Any], extras: Mapping[str, Any]) -> Any:
    wanted = _wanted(reward, [*batch, *extras])
    # Copies, so that a function that changes its arguments changes neither our data nor the next function's.
    copies = {name: copy.deepcopy(list(values)) for name, values in batch.items() if name in wanted}
    try:
        return reward.function(**copies, **{name: value for name, value in extras.items() if name in wanted})
    except InputError:  # ours already: a child process said it
        raise
    except Exception as error:
        raise _raised(reward.name, error) from error


def _wanted(reward: Reward, offered: Sequence[str]) -> set[str]:
    """Return which of the offered arguments the function takes; raise if it needs one that is not offered."""
    try:
        parameters = inspect.signature(reward.function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: TRL's convention, all of them
        return set(offered)
    for parameter in parameters:
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RewardError(f'reward "{reward.name}": takes "{parameter.name}" by position only; '
                              'arguments are passed by keyword, so remove the "/"')  # fmt: skip
        if not variadic and parameter.default is parameter.empty and parameter.name not in offered:
            raise RewardError(f'reward "{reward.name}": needs the argument "{parameter.name}", which is no column of '
                              f"the dataset.{did_you_mean(parameter.name, offered)}")  # fmt: skip
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return set(offered)
    return {parameter.name for parameter in parameters}


async def _named(name: str, awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except Exception as error:
        raise _raised(name, error) from error


def _await_together(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all at once: in a loop of our own, on a thread of its own where this one already runs a loop."""

    async def together() -> list[Any]:
        return await asyncio.gather(*awaitables)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(together())
    outcome: dict[str, Any] = {}
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome["results"] = context.run(asyncio.run, together())
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="logpi-rewards")
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["results"]


def _checked(name: str, result: Any, num_completions: int) -> list[float | None]:
    return [_number(name, value, index) for index, value in enumerate(_listed(name, result, num_completions))]


def _listed(name: str, result: Any, num_completions: int) -> Any:
    """Return the result if it is a list of as many values as there are completions."""
    listlike = hasattr(result, "__len__") and hasattr(result, "__getitem__") and getattr(result, "ndim", 1) == 1
    if not listlike or isinstance(result, str | bytes | Mapping):
        raise RewardError(f'reward "{name}": returned a {type(result).__name__} ({result!r:.60}); '
                          f"return a list of {num_completions} numbers, one per completion")  # fmt: skip
    if len(result) != num_completions:
        raise RewardError(f'reward "{name}": returned {len(result)} values for {num_completions} completions; '
                          "return one per completion, in their order (None where it does not apply)")  # fmt: skip
    try:
        return [result[index] for index in range(num_completions)]
    except Exception as error:
        raise _raised(name, error) from error


def _number(name: str, value: Any, index: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, Failed):
        raise RewardError(f'reward "{name}": completion {index}: {value.reason}')
    place = f'reward "{name}": completion {index} got {value!r:.60}'
    dtype = getattr(value, "dtype", None)
    # float() would read text, and drop the imaginary part of a numpy or torch complex number.
    unreal = getattr(dtype, "kind", "f") in "USOcMm" or getattr(dtype, "is_complex", False)
    if isinstance(value, str | bytes | complex) or unreal or getattr(value, "ndim", 0) != 0:
        raise RewardError(f"{place}, a {type(value).__name__}; return one real number (or None)")
    try:
        number = float(value)
    except Exception as error:
        raise RewardError(f"{place}, a {type(value).__name__}; return one real number (or None)") from error
    if not math.isfinite(number):
        raise RewardError(f"{place}; return a finite number, or None where the reward does not apply")
    return number


def _total(rewards: Sequence[Reward], by_name: Mapping[str, list[float | None]], index: int) -> float | None:
    given = [reward.weight * value for reward in rewards if (value := by_name[reward.name][index]) is not None]
    if not given:
        return None
    total = sum(given)
    if not math.isfinite(total):
        raise RewardError(f"the weighted sum of the rewards of completion {index} is {total}; lower the weights")
    return total


def _raised(name: str, error: Exception) -> RewardError:
    return RewardError(f'reward "{name}": raised {type(error).__name__}: {str(error)[:200]}')


def _ignore(*_: Any) -> None:
    """Stand in for a logger that the caller did not give."""
