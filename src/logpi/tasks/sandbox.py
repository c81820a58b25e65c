"""Programs written by a model, run where they can do no harm: sandlock (Landlock and seccomp), on Linux 6.12 or newer.

No network, no files but the interpreter's, nothing to write to, no environment, one process; time, memory and output
have limits. Where the kernel can't give all of it, nothing is run: there is no way around it.
"""

from __future__ import annotations

import os
import platform
import selectors
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from logpi.errors import InputError, missing_extra

READABLE = ("/usr", "/lib", "/lib64", "/bin")  # and the interpreter's own folder

# What Landlock leaves open: a file's mode, owner, times, attributes; memory in a nameless file, which no limit counts.
DENIED = [
    "memfd_create", "fchmod", "fchmodat", "fchown", "fchownat", "utimensat", "setxattr", "lsetxattr", "fsetxattr",
    "removexattr", "lremovexattr", "fremovexattr",
]  # fmt: skip
if platform.machine() == "x86_64":
    DENIED += ["chmod", "chown", "lchown", "utime", "utimes", "futimesat"]

# Set limits that the program can't lift, read it from stdin (its length first: the rest of stdin is its own), run it.
_STARTER = """
import os, resource
for what, most in (("CPU", {seconds}), ("FSIZE", 0), ("CORE", 0), ("NOFILE", 32), ("AS", {memory})):
    resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
def read(left):
    parts = []
    while left:
        parts.append(os.read(0, left))
        left -= len(parts[-1])
    return b"".join(parts)
program = read(int(read(8)))
exec(compile(program, "program", "exec"), {{"__name__": "__main__"}})
"""


@dataclass(frozen=True)
class SandboxLimits:
    """What one program may use."""

    seconds: float = 5.0  # wall clock
    memory_bytes: int = 512 * 2**20
    output_bytes: int = 65536  # the rest is dropped, and the program killed


@dataclass(frozen=True)
class Finished:
    """How a program ended, and what it wrote to its standard output."""

    output: bytes
    ended: bool  # by itself and with exit code 0
    problem: str | None = None  # "took longer than 5 s", ...


@cache
def require_sandbox() -> Any:
    """Return the sandlock module. Raises InputError, with what to do, where the sandbox can't be had in full."""
    if sys.platform != "linux":
        raise InputError(
            "programs written by a model run in a sandbox that needs Linux 6.12 or newer: train on Linux "
            "(a virtual machine, or WSL with a new kernel), or use a reward that runs no programs"
        )
    try:
        import sandlock
    except ImportError:
        raise missing_extra("sandlock", "sandbox", "running programs written by a model") from None
    have, need = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
    if have < need:
        raise InputError(
            f"this kernel can't sandbox programs (Landlock ABI {have}, needed {need}: Linux 6.12 or newer; in a "
            "container the host's kernel counts, and seccomp must be allowed): use a reward that runs no programs"
        )
    probe = run_python("print(6 * 7)", limits=SandboxLimits(seconds=20.0))
    if probe.output != b"42\n":
        raise InputError(f"the sandbox does not work here ({probe.problem or 'no output'}): nothing is run without it")
    return sandlock


def run_python(program: str, given: bytes = b"", limits: SandboxLimits | None = None) -> Finished:
    """Run a Python program in the sandbox with `given` as its standard input; isolated from the user's packages."""
    import sandlock

    limits = limits or SandboxLimits()
    interpreter = os.path.realpath(sys.executable)
    readable = [path for path in (*READABLE, str(Path(interpreter).parents[1])) if Path(path).exists()]
    starter = _STARTER.format(seconds=int(limits.seconds) + 1, memory=limits.memory_bytes)
    command = [interpreter, "-I", "-S", "-B", "-X", "utf8", "-c", starter]
    source = program.encode(errors="replace")
    given = f"{len(source):8d}".encode() + source + given
    sandbox = sandlock.Sandbox(
        fs_readable=readable,
        cwd="/usr",
        clean_env=True,
        env={"PATH": "/usr/bin:/bin"},
        max_memory=limits.memory_bytes,
        max_processes=1,
        max_open_files=32,
        no_coredump=True,
        extra_deny_syscalls=DENIED,
    )
    try:
        piped = sandlock.StdioMode.PIPED
        with sandbox, sandbox.popen(command, stdin=piped, stdout=piped, stderr=sandlock.StdioMode.NULL) as process:
            output, problem = _converse(process, given, limits)
            if problem is not None:
                process.kill()
            result = process.wait(timeout=1.0)
    except (sandlock.SandlockError, RuntimeError) as error:
        return Finished(b"", False, f"could not be run: {error}")
    ended = problem is None and bool(result.success)
    return Finished(output, ended, problem or (None if ended else f"ended with exit code {result.exit_code}"))


def _converse(process: Any, given: bytes, limits: SandboxLimits) -> tuple[bytes, str | None]:
    """Feed stdin and read stdout until it ends, time is up or there is too much; return it, and what went wrong."""
    output = b""
    deadline = time.monotonic() + limits.seconds
    streams = selectors.DefaultSelector()
    streams.register(process.stdout, selectors.EVENT_READ)
    os.set_blocking(process.stdin.fileno(), False)
    streams.register(process.stdin, selectors.EVENT_WRITE)
    while (left := deadline - time.monotonic()) > 0:
        for key, _ in streams.select(left):
            if key.fileobj is process.stdin:
                try:
                    given = given[os.write(key.fd, given) :] if given else given
                except (BrokenPipeError, BlockingIOError):
                    given = given if isinstance(sys.exc_info()[1], BlockingIOError) else b""
                if not given:
                    streams.unregister(process.stdin)
                    process.stdin.close()
                continue
            data = os.read(key.fd, 65536)
            if not data:
                return output, None
            output += data
            if len(output) > limits.output_bytes:
                return output[: limits.output_bytes], f"wrote more than {limits.output_bytes:,} bytes"
    return output, f"took longer than {limits.seconds:g} s"
