"""A run's folder: what it holds, who may write to it, and how rows are appended and cut back."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from logpi.errors import InputError
from logpi.platforms import try_lock
from logpi.storage import TEMPORARY, flush_file, remove_temporary, storing, write_file

MAY_CHANGE = ("max_steps", "strict", "checkpoint.every_steps", "checkpoint.keep")
ROWS = ("metrics.jsonl", "timing.jsonl", "samples.jsonl", "evaluations.jsonl")
LOCK = "lock"
NEEDED = {
    "config.json": ("recipe", "seed", "policy"),
    "run.json": ("run_id", "fingerprints", "machine"),
    "summary.json": ("status", "steps"),
    "fork.json": ("run", "step"),
}


class RunFolder:
    """`config.json` and `run.json` say what runs, `sessions.jsonl` when and where; metrics, timing, samples and
    evaluations are rows with a step; `checkpoints/` and `journal/` are for going on, `final/` for using the model,
    `summary.json` says how it ended. Use it in a `with`: it is locked until the end."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """Create the folder, or open the one of the same run. Raises InputError for a folder that holds something else,
        that cannot be written, or that another process writes to."""
        _check_name(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; name a folder for the run with --run")
        folder = cls(path)
        known = folder.read_json("config.json")
        if known is None and path.is_dir() and any(_is_foreign(entry) for entry in path.iterdir()):
            raise InputError(f"{path} holds files that are not a logpi run; name another folder with --run")
        if known is not None and (different := differences(known, config)):
            raise InputError(
                f"{path} holds a run with another configuration:\n  " + "\n  ".join(different[:12]) + "\n"
                "name another folder with --run, or go on from one of its checkpoints as a new run with --fork STEP"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder.lock()
            remove_temporary(path)
            for name in ("checkpoints", "journal"):
                (path / name).mkdir(exist_ok=True)
                remove_temporary(path / name)
            folder.write_json("config.json", config)
        except OSError as error:
            folder.close()
            raise InputError(f"{path} cannot be written: {error.strerror}; name another folder with --run") from error
        except BaseException:
            folder.close()
            raise
        return folder

    # --- one process at a time ---------------------------------------------------------------------------------

    def lock(self) -> None:
        """Take the folder for this process. Raises InputError where another one has it."""
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not try_lock(self._lock):
            holder = os.read(self._lock, 200).decode(errors="replace").strip() or "an unknown process"
            raise InputError(f"{self.path} is in use by {holder}: wait until it ends, or name another folder (--run)")
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def close(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- files -------------------------------------------------------------------------------------------------

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a file's content, None where there is no such file. Raises InputError for one that is damaged."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if missing := [key for key in NEEDED.get(name, ()) if key not in content]:
                raise ValueError(f"it has no {missing[0]}")
            return dict(content)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{file} is damaged ({error}); restore it, or name another folder with --run") from error

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        write_file(self.path / name, text.encode())

    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows to a JSON-lines file. They are on disk for good after the next `flush`."""
        content = "".join(_line(row) for row in rows).encode()
        with storing(self.path / name, len(content)), (self.path / name).open("ab") as file:
            file.write(content)

    def flush(self) -> None:
        """Return when every row would survive a power cut."""
        for name in ROWS:
            if (self.path / name).is_file():
                with storing(self.path / name):
                    flush_file(self.path / name)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield a JSON-lines file's whole rows; a torn last line is not one, and what follows damage is not read."""
        file = self.path / name
        if file.is_file():
            for line in file.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    return
                if not isinstance(row, dict):
                    return
                yield row

    def cut_back(self, step: int) -> None:
        """Keep the rows of steps up to `step` only: what came after the checkpoint will be done, and written, again."""
        for name in ROWS:
            if (self.path / name).is_file():
                kept = [row for row in self.rows(name) if isinstance(row.get("step"), int) and row["step"] <= step]
                self.write_text(name, "".join(map(_line, kept)))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `key: old → new` for each setting that differs and makes it another run."""
    a, b = leaves(old), leaves(new)
    return [f"{k}: {a.get(k)} → {b.get(k)}" for k in sorted(a | b) if k not in MAY_CHANGE and a.get(k) != b.get(k)]


def _check_name(path: Path) -> None:
    """Raise InputError for a folder's name that a terminal or a file system would choke on."""
    for part in path.parts:
        if "\0" in part or any(not c.isprintable() for c in part):
            raise InputError(f"--run {str(path)!a:.80}: the name holds characters that can't be printed; rename it")
        if len(part.encode()) > 200:
            raise InputError(f"--run {part[:20]}…: the name has {len(part.encode())} bytes; at most 200 are allowed")


def _is_foreign(path: Path) -> bool:
    """Return whether a folder with this in it, and without config.json, is somebody else's: a run killed in its first
    moments leaves only a lock, empty folders and unfinished files."""
    ours = path.name == LOCK or path.name.startswith(TEMPORARY)
    return not (ours or (path.name in ("checkpoints", "journal") and path.is_dir() and not any(path.iterdir())))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted names to values."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        out |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
