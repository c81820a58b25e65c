"""SIGINT (Ctrl-C) and SIGTERM: stop at the edge of a step, save, exit; the second one exits at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from logpi.platforms import on_signals, restore_signals


class Abandoned(BaseException):
    """Raised by a signal where what is under way can be thrown away; a BaseException, so that no reward catches it."""


class Interrupts:
    """Notes the first signal. Work that `abandonable` surrounds ends at once, other work ends first."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._may_abandon = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = on_signals(self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        restore_signals(self._before)

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Surround work that leaves nothing behind. Raises Abandoned when a signal comes, or has come before it."""
        if self.signal is not None:
            raise Abandoned
        self._may_abandon = True
        try:
            yield
        finally:
            self._may_abandon = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)  # nothing is half written under its own name: see storage
        self.signal = number
        if self._may_abandon:
            self._may_abandon = False
            raise Abandoned
