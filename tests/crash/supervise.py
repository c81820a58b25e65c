"""Watch a child's file system calls, and let it die, or fail, at the k-th: Linux's seccomp user notification.

The child's calls that change files are held until the parent has looked at them, so "the k-th write, rename or fsync"
is exact, calls from native code (safetensors) included, and nothing in the child is patched.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import platform
import select
import shutil
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, FLAG_NEW_LISTENER = 1, 1 << 3
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
RECV, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1

# name -> (x86-64, arm64); the first argument is a descriptor for those in BY_DESCRIPTOR, else see PATHS
CALLS = {
    "write": (1, 64),
    "pwrite64": (18, 68),
    "writev": (20, 66),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "rename": (82, -1),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "unlink": (87, -1),
    "unlinkat": (263, 35),
    "rmdir": (84, -1),
    "mkdir": (83, -1),
    "mkdirat": (258, 34),
}
BY_DESCRIPTOR = ("write", "pwrite64", "writev", "ftruncate", "fsync", "fdatasync")
WRITES = ("write", "pwrite64", "writev")
# name -> (index of the directory descriptor or None, index of the path) of each path among its arguments
PATHS = {
    "rename": [(None, 0), (None, 1)],
    "renameat": [(0, 1), (2, 3)],
    "renameat2": [(0, 1), (2, 3)],
    "unlink": [(None, 0)],
    "unlinkat": [(0, 1)],
    "rmdir": [(None, 0)],
    "mkdir": [(None, 0)],
    "mkdirat": [(0, 1)],
}
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)
PIDFD_OPEN, PIDFD_GETFD = 434, 438
SECCOMP = (317, 277)[COLUMN]


@dataclass
class Event:
    """One call that changes a file of the watched folder."""

    call: str
    paths: list[str]  # below the folder; a rename has two


@dataclass
class Outcome:
    """How the child ended, and what it did."""

    status: int  # exit code, or minus the signal
    events: list[Event] = field(default_factory=list)
    hit: Event | None = None  # the one that was not let through


def supervise(
    work: Callable[[], int],
    folder: Path,
    *,
    kill_at: int | None = None,
    fail_at: int | None = None,
    torn: bool = False,
    power_cut: bool = False,
) -> Outcome:
    """Fork, run `work` in the child, watch what it does to the files below `folder`; return how it ended.

    kill_at: SIGKILL in place of the k-th call (from 0); with `torn`, after half of it if it is a write; with
    `power_cut`, what was not flushed by then is lost. fail_at: from the k-th write on, every write finds a full disk.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            ours.close()
            _watch_me(theirs)
            status = work()
        finally:
            os._exit(status)
    theirs.close()
    listener = _receive(ours)
    disk = _Disk(folder) if power_cut else None
    outcome = Outcome(0)
    writes = 0
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        (_, happened), *_ = poll.poll()
        if not happened & select.POLLIN:
            break
        request = bytearray(80)
        try:
            _ioctl(listener, RECV, request)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            raise
        identity, task, _ = struct.unpack_from("QII", request)
        number, arguments = struct.unpack_from("i", request, 16)[0], struct.unpack_from("6Q", request, 32)
        call = next(name for name, numbers in CALLS.items() if numbers[COLUMN] == number)
        paths = _paths(task, call, arguments, folder)
        error_number = 0
        if paths:
            event = Event(call, paths)
            if kill_at == len(outcome.events):
                outcome.hit = event
                if torn and call in WRITES:
                    _half(pid, task, arguments)
                os.kill(pid, signal.SIGKILL)
                break
            if call in WRITES:
                if fail_at is not None and writes >= fail_at:
                    error_number, outcome.hit = errno.ENOSPC, outcome.hit or event
                writes += 1
            if disk is not None:
                disk.before(event)
            outcome.events.append(event)
        reply = struct.pack("QqiI", identity, 0, -error_number, 0 if error_number else CONTINUE)
        try:
            _ioctl(listener, SEND, bytearray(reply))
        except OSError as error:
            if error.errno != errno.ENOENT:  # the child is gone
                raise
    outcome.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(listener)
    ours.close()
    if disk is not None and outcome.hit is not None:
        disk.lose_what_was_not_flushed()
    return outcome


# --- the child ------------------------------------------------------------------------------------------------------


def _watch_me(channel: socket.socket) -> None:
    """Install the filter in this process and all threads to come; send its listener to the parent."""
    numbers = [numbers[COLUMN] for numbers in CALLS.values() if numbers[COLUMN] >= 0]
    program = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the call's number
    for index, number in enumerate(numbers):
        program.append(struct.pack("HBBI", 0x15, len(numbers) - index, 0, number))  # equal: jump to the last
    program += [struct.pack("HBBI", 0x06, 0, 0, ALLOW), struct.pack("HBBI", 0x06, 0, 0, NOTIFY)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = LIBC.syscall(SECCOMP, SECCOMP_SET_MODE_FILTER, FLAG_NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(channel, [b"x"], [listener])
    os.close(listener)
    channel.close()


# --- the parent -----------------------------------------------------------------------------------------------------


def _receive(channel: socket.socket) -> int:
    descriptors = array.array("i")
    _, ancillary, *_ = channel.recvmsg(1, socket.CMSG_LEN(4))
    for _, _, data in ancillary:
        descriptors.frombytes(data[:4])
    if not descriptors:
        raise RuntimeError("the child could not be watched: seccomp user notification is not available here")
    return descriptors[0]


def _ioctl(descriptor: int, request: int, buffer: bytearray) -> None:
    view = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    if LIBC.ioctl(descriptor, ctypes.c_ulong(request), view) < 0:
        raise OSError(ctypes.get_errno(), "ioctl")


def _paths(task: int, call: str, arguments: tuple[int, ...], folder: Path) -> list[str]:
    """Return the paths below the folder that a call is about; none where it is about something else."""
    if call in BY_DESCRIPTOR:
        found = [_link(f"/proc/{task}/fd/{arguments[0]}")]
    else:
        found = []
        for base, index in PATHS[call]:
            path = _string(task, arguments[index])
            if not path.startswith("/"):
                descriptor = ctypes.c_int(arguments[base]).value if base is not None else -100
                start = f"/proc/{task}/cwd" if descriptor == -100 else f"/proc/{task}/fd/{descriptor}"
                path = os.path.join(_link(start), path)
            found.append(path)
    root = str(folder)
    return [os.path.relpath(p, root) for p in found if p == root or p.startswith(root + "/")]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _string(task: int, address: int) -> str:
    return _memory(task, address, 4096).split(b"\0", 1)[0].decode(errors="surrogateescape")


def _memory(task: int, address: int, length: int) -> bytes:
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def _half(pid: int, task: int, arguments: tuple[int, ...]) -> None:
    """Write the first half of what the child is about to write, where it would have."""
    process = LIBC.syscall(PIDFD_OPEN, pid, 0)
    descriptor = LIBC.syscall(PIDFD_GETFD, process, ctypes.c_int(arguments[0]), 0)
    if descriptor >= 0:
        os.write(descriptor, _memory(task, arguments[1], arguments[2])[: arguments[2] // 2])
        os.close(descriptor)
    os.close(process)


class _Disk:
    """What would be on the disk after a power cut: contents as last flushed, renames up to the folder's last flush."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.flushed: dict[int, bytes] = {}  # inode -> content
        self.written: set[int] = set()
        self.renames: list[tuple[str, str, Path | None]] = []  # not flushed yet; what the target was before
        self.backups = folder.with_name(folder.name + ".backups")
        shutil.rmtree(self.backups, ignore_errors=True)
        self.backups.mkdir(parents=True)

    def before(self, event: Event) -> None:
        path = self.folder / event.paths[0]
        if (event.call in WRITES and path.exists()) or (event.call == "ftruncate" and path.exists()):
            self.written.add(path.stat().st_ino)
        elif event.call in ("fsync", "fdatasync"):
            if path.is_dir():
                self.renames = [r for r in self.renames if (self.folder / r[1]).parent != path]
            elif path.exists():
                self.flushed[path.stat().st_ino] = path.read_bytes()
                self.written.discard(path.stat().st_ino)
        elif event.call.startswith("rename") and len(event.paths) == 2:
            target, kept = self.folder / event.paths[1], None
            if target.exists():
                kept = self.backups / str(len(list(self.backups.iterdir())))
                os.link(target, kept) if target.is_file() else shutil.copytree(target, kept)
            self.renames.append((event.paths[0], event.paths[1], kept))

    def lose_what_was_not_flushed(self) -> None:
        for source, target, kept in reversed(self.renames):
            if (self.folder / target).exists():
                os.rename(self.folder / target, self.folder / source)
            if kept is not None:
                os.rename(kept, self.folder / target)
        for path in [*self.folder.rglob("*"), *self.backups.rglob("*")]:
            if path.is_file() and path.stat().st_ino in self.written:
                path.write_bytes(self.flushed.get(path.stat().st_ino, b""))
        shutil.rmtree(self.backups)
