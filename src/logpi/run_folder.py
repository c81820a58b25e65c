"""A run's folder: what it holds, and how rows are appended and cut back."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logpi.errors import InputError

MAY_CHANGE = ("max_steps", "checkpoint.every_steps", "checkpoint.keep")
ROWS = ("metrics.jsonl", "timing.jsonl", "samples.jsonl", "evaluations.jsonl")


class RunFolder:
    """`config.json` and `run.json` say what runs; metrics, timing, samples and evaluations are rows with a step;
    `checkpoints/` is for going on, `final/` for using the model, `summary.json` says how it ended."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def open(cls, path: Path, config: dict[str, Any], *, fresh: bool = False) -> RunFolder:
        """Create the folder, or open the one of the same run. Raises InputError for a folder that holds something else,
        or one that cannot be written."""
        folder = cls(path)
        if fresh and path.exists():
            raise InputError(f"{path} exists and --fresh never overwrites: name another folder with --run")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; name a folder for the run with --run")
        if path.is_dir() and any(path.iterdir()):
            known = folder.read_json("config.json")
            if known is None:
                raise InputError(f"{path} holds files that are not a logpi run; name another folder with --run")
            old, new = _leaves(known), _leaves(config)
            different = [k for k in sorted(old | new) if k not in MAY_CHANGE and old.get(k) != new.get(k)]
            if different:
                shown = "; ".join(f"{k}: {old.get(k)} → {new.get(k)}" for k in different[:8])
                raise InputError(f"{path} holds another run ({shown}); name another folder with --run")
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder.write_json("config.json", config)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}; name another folder with --run") from error
        return folder

    def read_json(self, name: str) -> Any:
        """Return a file's content, None where there is no such file."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_json(self, name: str, content: Any) -> None:
        """Write a file whole or not at all: beside it, flushed to disk, then renamed."""
        write_atomically(self.path / name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Append a row to a JSON-lines file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield a JSON-lines file's whole rows; a torn last line is not one."""
        file = self.path / name
        if file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return

    def cut_back(self, step: int) -> None:
        """Keep the rows of steps up to `step` only: what came after the checkpoint will be done, and written, again."""
        for name in ROWS:
            if (self.path / name).is_file():
                kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows(name) if row["step"] <= step]
                write_atomically(self.path / name, "".join(kept))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a run after a crash, sees all of it or the one before."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(temporary: Path, target: Path) -> None:
    """Move a finished folder to its name, in place of an older one."""
    if target.exists():
        shutil.rmtree(target)
    os.rename(temporary, target)
    sync_folder(target.parent)


def _leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted names to values."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        out |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
