"""Errors that a user can act on: each names the value, the place and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LogpiError(Exception):
    """Base of every error that logpi raises on purpose."""

    exit_code = 1


class InputError(LogpiError, ValueError):
    """The user's input cannot be used: the message says what, where and what to do instead."""

    exit_code = 2


class RewardError(InputError):
    """A reward function raised, or returned something that is not one number (or None) per completion."""


class NothingScoredError(RewardError):
    """Every reward function gave None to every completion of a batch."""


class NonFiniteError(LogpiError):
    """A loss, gradient, logit or log-probability is NaN or infinite."""

    exit_code = 3


class MismatchError(LogpiError):
    """Sampler and learner differ in a log-prob, in a run that was told to stop then (--strict)."""

    exit_code = 5


class OutOfMemoryError(LogpiError):
    """Memory does not suffice, even for the smallest piece that the work can be cut into."""


class StorageError(LogpiError):
    """The run's folder cannot be written: a full disk, a quota, a permission. What was saved before stands."""

    exit_code = 4


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean "x"?`` for the nearest known name, or all of them when few and none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f' Did you mean "{near[0]}"?'
    return f" Choose from: {', '.join(known)}." if len(known) <= 24 else ""


def missing_extra(package: str, extra: str, purpose: str) -> InputError:
    """Return the error for an optional package that is not installed."""
    return InputError(f'{purpose} needs the package "{package}": pip install "logpi[{extra}]"')
