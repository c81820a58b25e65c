"""Saving and loading what a run needs to go on: named tensors and numbers, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from logpi.errors import NonFiniteError
from logpi.run_folder import sync_folder


@dataclass(frozen=True)
class TrainState:
    """The inventory: everything that the steps after `step` depend on, by name."""

    step: int  # steps done
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def save(folder: Path, state: TrainState, keep: int) -> Path:
    """Write checkpoint `step-N`: temporary folder, files flushed, manifest with hashes, rename; only then are
    older ones removed, `keep` left. Raises NonFiniteError rather than save weights that are NaN or infinite."""
    for name, tensor in state.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} is not finite at step {state.step}: not saved; the last checkpoint stands")
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob("*.tmp-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f"step-{state.step:08d}.tmp-"))
    save_file({name: t.contiguous() for name, t in state.tensors.items()}, temporary / "state.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": state.step, **state.numbers}))
    manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in temporary.iterdir()}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for file in temporary.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(temporary)
    target = folder / f"step-{state.step:08d}"
    if target.exists():  # the same step saved again, by a run that went on: the same content
        shutil.rmtree(temporary)
        return target
    os.rename(temporary, target)
    sync_folder(folder)
    for old in _by_age(folder)[keep:]:
        shutil.rmtree(old)
    return target


def load_newest(folder: Path) -> tuple[TrainState | None, list[str]]:
    """Return the newest checkpoint whose files match their manifest, and a note on each one set aside."""
    notes = []
    for path in _by_age(folder):
        problem = _problem(path)
        if problem is None:
            numbers = json.loads((path / "state.json").read_text())
            return TrainState(numbers.pop("step"), load_file(path / "state.safetensors"), numbers), notes
        aside = path.with_name(f"damaged-{path.name}")
        os.rename(path, aside)
        notes.append(f"checkpoint {path.name} is damaged ({problem}): set aside as {aside.name}, the older one is used")
    return None, notes


def _by_age(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step-*") if ".tmp-" not in p.name), reverse=True)


def _problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if nothing is."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            if (path / name).stat().st_size != expected["bytes"] or _sha256(path / name) != expected["sha256"]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
