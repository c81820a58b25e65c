"""What each step sampled and how it was scored, on disk until no checkpoint needs it any more.

A step that is done again after a crash reads its trajectories back: nothing is sampled again, and a reward that is
slow, costs money or answers differently each time is not asked again. A step is one safetensors file whose name ends in
the CRC-32 of its bytes; a file that does not match is as good as none.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from logpi.storage import write_file
from logpi.trajectory import Trajectory


class Journal:
    """The steps after the oldest checkpoint that is kept, a file each. What was written under another `key` (the hash
    of a configuration) is not read: other weights sampled it."""

    def __init__(self, folder: Path, key: str = ""):
        self.folder, self.key = folder, key

    def write(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Keep a step's trajectories; on disk when this returns."""
        content = pack(trajectories, self.key)
        self.folder.mkdir(exist_ok=True)
        write_file(self.folder / f"step-{step:08d}-{zlib.crc32(content):08x}.safetensors", content)

    def read(self, step: int) -> list[Trajectory] | None:
        """Return a step's trajectories as they were kept; None where there are none, or their bytes have changed."""
        for file in self.folder.glob(f"step-{step:08d}-*.safetensors"):
            if f"{zlib.crc32(file.read_bytes()):08x}" == file.stem[-8:]:
                trajectories, key = unpack(file)
                if key == self.key:
                    return trajectories
        return None

    def keep(self, step: int, folder: Path) -> Path:
        """Copy a step's file to where nothing removes it; return the copy."""
        files = self.folder.glob(f"step-{step:08d}-*.safetensors")
        source = max(files, key=lambda file: file.stat().st_mtime_ns)
        folder.mkdir(exist_ok=True)
        write_file(folder / source.name, source.read_bytes())
        return folder / source.name

    def prune(self, step: int) -> None:
        """Remove the steps up to this one."""
        for file in self.folder.glob("step-*.safetensors"):
            if int(file.name[5:13]) <= step:
                file.unlink()


def pack(trajectories: Sequence[Trajectory], key: str = "") -> bytes:
    """Return trajectories as one safetensors file: a tensor field of all of them joined along time, with lengths;
    everything else as JSON in the header."""
    tensors: dict[str, Tensor] = {}
    rest: list[dict[str, Any]] = [{} for _ in trajectories]
    for field in fields(Trajectory):
        values = [getattr(t, field.name) for t in trajectories]
        parts = [v for v in values if isinstance(v, Tensor)]
        if parts:
            tensors[field.name] = torch.cat(parts)
            tensors[f"{field.name}/length"] = torch.tensor([len(v) if isinstance(v, Tensor) else -1 for v in values])
        for entry, value in zip(rest, values, strict=True):
            if not isinstance(value, Tensor):
                entry[field.name] = value
    return save(tensors, {"trajectories": json.dumps(rest), "key": key})


def unpack(file: Path) -> tuple[list[Trajectory], str]:
    """Return what `pack` wrote, bit for bit, and its key."""
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
        entries: list[dict[str, Any]] = json.loads(header["trajectories"])
        for name in [n for n in sorted(opened.keys()) if not n.endswith("/length")]:
            joined, start = opened.get_tensor(name), 0
            for entry, length in zip(entries, opened.get_tensor(f"{name}/length").tolist(), strict=True):
                if length >= 0:
                    entry[name] = joined[start : start + length].clone()
                    start += length
    return [Trajectory(**entry) for entry in entries], header["key"]
