"""Environments that talk: the policy writes a message, a user or a tool answers, and so on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Reply:
    """What comes back for a message of the policy."""

    text: str | None  # None: nothing, the episode is over
    reward: float = 0.0  # for the message; it goes to its last token
    role: str = "user"  # who replies; "tool" for what a tool gave


class Conversation(Protocol):
    """One episode. A new one is made for each, so it may keep what it likes in attributes.

    Everything it does must follow from what it is given: `seed` is its randomness, a number below 2^53 that the
    trajectories of a group share, so that a group meets the same user and only the policy's own draws differ.
    """

    def reset(self, seed: int, **columns: Any) -> str | None:
        """Begin with a row's columns. Returns the user's first words behind the row's prompt, or None."""
        ...

    def step(self, message: str) -> Reply:
        """Answer the policy's message."""
        ...

    def scores(self) -> dict[str, float]:
        """Return what the episode is judged by, at its end, whether it ended or a limit cut it; the first is its score
        in evaluations. They are recorded; training sees the rewards alone."""
        ...
