"""Writing files so that a reader, or a run after a crash, sees all of one or the one before."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from logpi.errors import StorageError
from logpi.platforms import flush_folder, flush_to_disk

TEMPORARY = ".tmp-"  # in the name of whatever is not finished; nobody reads it, the next start removes it

_UMASK = os.umask(0)  # can be read only by setting it
os.umask(_UMASK)

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EFBIG: "the file is larger than allowed: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: remount it, or name another folder with --run",
    errno.EACCES: "permission denied: change it, or name another folder with --run",
    errno.EPERM: "not permitted: change it, or name another folder with --run",
    errno.EIO: "the disk reports an input/output error: check it",
}


@contextmanager
def storing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turn an operating system's error inside into a StorageError: the file, what is needed and free, the remedy."""
    try:
        yield
    except Exception as error:
        inner = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors and tokenizers, in Rust, report it
        if not isinstance(error, OSError) and inner is None:
            raise
        number = error.errno if isinstance(error, OSError) else int(inner[1]) if inner else None
        remedy = _REMEDIES.get(number or 0, str(error))
        size = "" if num_bytes is None else f" ({num_bytes:,} bytes; {free_bytes(path):,} are free)"
        raise StorageError(
            f"{path} could not be written{size}: {remedy}. What was saved before stands; then the same command goes on"
        ) from error


def free_bytes(path: Path) -> int:
    """Return how much a user may still write where the path is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside it, flushed to disk, then renamed."""
    with storing(path, len(content)):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp's is for secrets
                file.flush()
                flush_to_disk(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


@contextmanager
def new_folder(target: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Give an empty folder to fill; at the end its files are flushed and it gets its name, in place of an older one."""
    with storing(target, num_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{TEMPORARY}{target.name}-"))
        try:
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~_UMASK)
                flush_folder(path) if path.is_dir() else flush_file(path)
            remove_folder(target)
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_folder(target.parent)


def flush_file(path: Path) -> None:
    """Return when the file's content would survive a power cut."""
    with path.open("rb") as file:
        flush_to_disk(file.fileno())


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill in between leaves nothing half removed under its name."""
    if path.exists():
        aside = path.with_name(f"{TEMPORARY}{path.name}-{os.urandom(4).hex()}")
        os.rename(path, aside)
        shutil.rmtree(aside)


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes left unfinished."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
