"""Saving and loading what a run needs to go on: named tensors and numbers, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from logpi.errors import InputError, NonFiniteError
from logpi.storage import new_folder, remove_folder

TENSORS, NUMBERS, MANIFEST = "state.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class TrainState:
    """The inventory: everything that the steps after `step` depend on, by name."""

    step: int  # steps done
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    run: str = ""  # the run that it belongs to

    def num_bytes(self) -> int:
        """Return about how large it is on disk."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


def save(folder: Path, state: TrainState, keep: int) -> Path:
    """Write checkpoint `step-N`: temporary folder, manifest with sizes and hashes, files flushed, rename, folder
    flushed; only then are older ones removed, `keep` left. Raises NonFiniteError rather than save weights that are NaN
    or infinite, StorageError where it can't be written; either way the ones before stand."""
    for name, tensor in state.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} is not finite at step {state.step}: not saved; the last checkpoint stands")
    target = folder / f"step-{state.step:08d}"
    if not target.exists():  # else a run that went on did this step again, and it came out the same
        with new_folder(target, state.num_bytes()) as temporary:
            save_file({name: t.contiguous() for name, t in state.tensors.items()}, temporary / TENSORS)
            numbers = {"step": state.step, "run": state.run, **state.numbers}
            (temporary / NUMBERS).write_text(json.dumps(numbers))
            manifest = {name: _entry(temporary / name) for name in (TENSORS, NUMBERS)}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
    for old in steps(folder)[:-keep]:
        remove_folder(folder / f"step-{old:08d}")
    return target


def steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, sound or not, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-" + "[0-9]" * 8))


def load_newest(folder: Path, run: str = "") -> tuple[TrainState | None, list[str]]:
    """Return the newest sound checkpoint of `run`, and a note on each one set aside: damaged, or of another run."""
    notes = []
    for step in reversed(steps(folder)):
        path = folder / f"step-{step:08d}"
        try:
            state = load(path)
        except InputError as error:
            notes.append(f"{error}: set aside as {_set_aside(path, 'damaged').name}, the older one is used")
            continue
        if state.run == run:
            return state, notes
        aside = _set_aside(path, "foreign")
        notes.append(f"checkpoint {path.name} belongs to another run ({state.run}): set aside as {aside.name}")
    return None, notes


def load(path: Path) -> TrainState:
    """Read one checkpoint. Raises InputError naming the file that does not match its manifest, and how."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name in (TENSORS, NUMBERS):
            file = path / name
            if file.is_symlink():
                raise ValueError(f"{name} is a link")
            if _entry(file) != manifest[name]:
                raise ValueError(f"{name} does not match its hash")
        numbers = json.loads((path / NUMBERS).read_text())
        return TrainState(numbers.pop("step"), load_file(path / TENSORS), numbers, numbers.pop("run"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise InputError(f"checkpoint {path.name} is damaged ({what})") from error


def _set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint that is not to be used; nothing is deleted."""
    number = 0
    while (aside := path.with_name(f"{why}-{path.name}" + (f"-{number}" if number else ""))).exists():
        number += 1
    os.rename(path, aside)
    return aside


def _entry(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
