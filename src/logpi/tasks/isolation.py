"""Reward functions in child processes that can be killed: a time limit that holds, and a crash that hurts nobody.

Each completion is a call of its own, so that one that hangs, raises or dies fails alone. A child is a process group of
its own: whatever a reward starts is killed with it. This contains accidents, not attacks: for programs written by a
model see `sandbox`.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from logpi.errors import InputError, RewardError
from logpi.platforms import kill_group, require_posix
from logpi.tasks.base import Reward, Task
from logpi.tasks.rewarding import Failed

IN_WORKER = "LOGPI_REWARD_WORKER"  # set in the environment of a child
DEFAULT_TIMEOUT_SECONDS = 10.0  # of a reward marked untrusted, where none is given
START_SECONDS = 60.0  # to import the reward's file
MAX_REPLY_BYTES = 65536
MAX_OUTPUT_BYTES = 8192


@dataclass(frozen=True)
class Limits:
    """How long one completion may take, how many children work at once, after how many calls one is replaced."""

    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    num_workers: int = 2
    max_calls: int = 1000


def untrusted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a reward function: it always runs in a child process with a time limit."""
    function.untrusted = True  # type: ignore[attr-defined]
    return function


def isolate(reward: Reward, limits: Limits) -> Reward:
    """Return the reward with its function in child processes. Raises InputError where a child could not import it."""
    require_posix("a reward with a time limit")
    return replace(reward, function=IsolatedFunction(reward.name, location_of(reward.function), limits))


def location_of(function: Callable[..., Any]) -> str:
    """Return "file.py:function" or "module:function" of a function at the top level of a file."""
    name, module = getattr(function, "__qualname__", ""), inspect.getmodule(function)
    if not name.isidentifier() or module is None:
        raise InputError(
            f"reward {name or function!r}: a time limit needs a function that a child process can import; "
            "define it at the top level of a file"
        )
    spec = getattr(module, "__spec__", None)
    if module.__name__ != "__main__" and spec is not None and spec.parent is not None and "." in module.__name__:
        return f"{module.__name__}:{name}"
    file = getattr(module, "__file__", None)
    if file is None:
        raise InputError(f'reward "{name}": was typed into an interpreter; a time limit needs it in a file')
    return f"{Path(file).resolve()}:{name}"


class IsolatedFunction:
    """A reward function with TRL's signature whose work is done by children; a Failed where one did not answer."""

    def __init__(self, name: str, location: str, limits: Limits):
        self.__name__, self.location, self.limits = name, location, limits
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        for _ in range(limits.num_workers):
            self._idle.put(None)  # started when needed
        self._workers: set[_Worker] = set()
        self._threads: ThreadPoolExecutor | None = None
        atexit.register(self.close)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, **columns: Any) -> list:
        own = {name: values for name, values in columns.items() if isinstance(values, list)}
        batch = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **own}
        requests = [{name: values[i] for name, values in batch.items()} for i in range(len(completions))]
        texts = [self._encoded(request) for request in requests]
        if self._threads is None:  # kept: a child dies with the thread that started it
            self._threads = ThreadPoolExecutor(self.limits.num_workers, thread_name_prefix="logpi-rewards")
        try:
            return list(self._threads.map(self._ask, texts))
        except BaseException:  # Ctrl-C among them: what is under way must not be waited for
            self.close()
            raise

    def _encoded(self, request: dict[str, Any]) -> bytes:
        try:
            return json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise InputError(
                f'reward "{self.__name__}": a column can\'t be sent to a child process ({error}); '
                "use text, numbers, lists and objects, or no time limit"
            ) from error

    def _ask(self, request: bytes) -> float | Failed | None:
        worker = self._idle.get()
        try:
            if worker is None or worker.killed:
                worker = _Worker(self.location)
                self._workers.add(worker)
                worker.wait_until_ready(self.__name__)
            reply = worker.call(request, self.limits.timeout_seconds)
            if isinstance(reply, Failed) or worker.num_calls >= self.limits.max_calls:
                self._discard(worker)
                worker = None
            if isinstance(reply, Failed):
                return reply
            return Failed(reply["error"]) if "error" in reply else reply["value"]
        except BaseException:
            if worker is not None:
                self._discard(worker)
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def _discard(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.discard(worker)

    def close(self) -> None:
        """Kill every child; another call starts others."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._workers):
            self._discard(worker)


class _Worker:
    """One child: requests go to its stdin, replies come over a descriptor that nothing it starts inherits."""

    def __init__(self, location: str):
        self.num_calls, self.killed = 0, False
        self.output = b""
        self._replies, theirs = os.pipe()
        program = f"from logpi.tasks.reward_worker import main; main({location!r}, {theirs})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs,),
            start_new_session=True,
            env={**os.environ, IN_WORKER: "1"},
        )
        os.close(theirs)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._replies, selectors.EVENT_READ)
        assert self.process.stdout is not None
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def wait_until_ready(self, name: str) -> None:
        """Wait until the child has imported the function. Raises RewardError with what it said instead."""
        reply = self._reply(START_SECONDS)
        if isinstance(reply, Failed):
            raise RewardError(f'reward "{name}": its process {reply.reason}{self.said()}')
        if "error" in reply:
            raise RewardError(f'reward "{name}": {reply["error"]}')

    def call(self, request: bytes, seconds: float) -> dict[str, Any] | Failed:
        """Send one request; return the reply, or why there is none."""
        self.num_calls += 1
        self.output = b""
        assert self.process.stdin is not None
        deadline = time.monotonic() + seconds
        os.set_blocking(self.process.stdin.fileno(), False)
        while request and time.monotonic() < deadline:  # a child that hangs does not read either
            try:
                request = request[os.write(self.process.stdin.fileno(), request) :]
            except BlockingIOError:
                time.sleep(0.001)
            except BrokenPipeError:
                return Failed(f"died with {self._status()}{self.said()}")
        return self._reply(max(0.0, deadline - time.monotonic()), seconds)

    def _reply(self, seconds: float, limit: float | None = None) -> dict[str, Any] | Failed:
        received = b""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                data = os.read(key.fd, MAX_REPLY_BYTES)
                if key.fd != self._replies:
                    self.output = (self.output + data)[-MAX_OUTPUT_BYTES:]  # the rest is dropped
                    if not data:
                        self._selector.unregister(key.fileobj)
                elif not data:
                    return Failed(f"died with {self._status()}{self.said()}")
                else:
                    received += data
            if len(received) > MAX_REPLY_BYTES:
                return Failed("answered with too much")
            if received.endswith(b"\n"):
                try:
                    return dict(json.loads(received))
                except (ValueError, TypeError):
                    return Failed("answered with something else than a number")
        return Failed(f"took longer than {limit or seconds:g} s{self.said()}")

    def _status(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(1.0)
            return f"signal {-status}" if status < 0 else f"exit code {status}"
        return "its channel closed"

    def said(self) -> str:
        """Return the last line of what the child printed, for a message."""
        lines = self.output.decode(errors="replace").strip().splitlines()
        return f"; it printed: {lines[-1][:200]}" if lines else ""

    def kill(self) -> None:
        """Kill the child and all that it started, and reap it."""
        if self.killed:
            return
        self.killed = True
        kill_group(self.process.pid)
        self.process.wait()
        self._selector.close()
        with contextlib.suppress(OSError):
            os.close(self._replies)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def close(task: Task | None) -> None:
    """Kill the children of a task's rewards and metrics."""
    for reward in () if task is None else (*task.rewards, *task.metrics):
        if isinstance(reward.function, IsolatedFunction):
            reward.function.close()


def apply_limits(rewards: Sequence[Reward], limits: Limits | None) -> Iterator[Reward]:
    """Yield the rewards, those in children that are marked untrusted, or all of them where limits are given."""
    for reward in rewards:
        is_marked = getattr(reward.function, "untrusted", False)
        yield isolate(reward, limits or Limits()) if limits is not None or is_marked else reward
