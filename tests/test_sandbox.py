"""Hostile programs: each one succeeds where it runs unguarded, and does not in the sandbox."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from logpi.errors import InputError
from logpi.tasks import sandbox
from logpi.tasks.python_tests import program_in, python_tests
from logpi.tasks.reward_loading import load_reward
from logpi.tasks.sandbox import SandboxLimits, require_sandbox, run_python

try:
    require_sandbox()
except InputError as error:
    WHY_NOT = str(error)
else:
    WHY_NOT = ""
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

LIMITS = SandboxLimits(seconds=2.0, memory_bytes=256 * 2**20)
WON = b"WON"

# {tmp}: a folder of the user's, {port}: a server on loopback, {name}: an abstract socket. Each prints WON on success.
ATTACKS = {
    "read a file": "print('WON' * ('canary' in open('{tmp}/secret').read()))",
    "list a folder": "import os; print('WON' * ('secret' in os.listdir('{tmp}')))",
    "read the environment": "import os; print('WON' * ('canary' in os.environ.get('LOGPI_TEST_SECRET', '')))",
    "read the parent's environment": (
        "import os; print('WON' * (b'PATH=' in open(f'/proc/{{os.getppid()}}/environ', 'rb').read()))"
    ),
    "write a file": "open('{tmp}/written', 'w').write('x'); print('WON')",
    "write to shared memory": "open('/dev/shm/logpi-test', 'w').write('x'); print('WON')",
    "delete a file": "import os; os.remove('{tmp}/victim'); print('WON')",
    "change a file's times": "import os; os.utime('{tmp}/secret', (0, 0)); print('WON')",
    "change a file's owner": "import os; os.chown('{tmp}/secret', os.getuid(), os.getgid()); print('WON')",
    "change a file's mode": "import os; os.chmod('{tmp}/secret', 0o600); print('WON')",
    "connect by TCP": "import socket; socket.create_connection(('127.0.0.1', {port}), 1); print('WON')",
    "send by UDP": ("import socket; print('WON' * (socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port})) == 1))"),
    "connect through libc": (
        "import ctypes, socket, struct\n"
        "libc = ctypes.CDLL(None)\n"
        "where = struct.pack('<H', 2) + struct.pack('>H', {port}) + socket.inet_aton('127.0.0.1') + bytes(8)\n"
        "print('WON' * (libc.connect(libc.socket(2, 1, 0), where, 16) == 0))"
    ),
    "connect to an abstract socket": "import socket; socket.socket(1, 1).connect('\\0{name}'); print('WON')",
    "listen": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print('WON')",
    "fork": "import os; print('WON' if os.fork() >= 0 else '')",
    "start a program": "import subprocess; subprocess.run(['/bin/true'], check=True); print('WON')",
    "outlive its run": (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    time.sleep(0.5)\n"
        "    open('{tmp}/later', 'w').write('x')\n"
        "    os._exit(0)\n"
        "print('WON')"
    ),
    "signal the parent": "import os; os.kill(os.getppid(), 0); print('WON')",
    "trace the parent": (
        "import ctypes, os\nprint('WON' * (ctypes.CDLL(None).ptrace(0x4206, os.getppid(), 0, 0) == 0))"
    ),
    "read the parent's memory": "import os; open(f'/proc/{{os.getppid()}}/mem', 'rb'); print('WON')",
    "take much memory": "x = bytearray(400 * 2**20); print('WON')",
    "hide much memory in a file": (
        "import os; f = os.memfd_create('x')\nfor _ in range(400): os.write(f, bytes(2**20))\nprint('WON')"
    ),
    "take long": "import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: pass\nprint('WON')",
    "sleep long": "import time; time.sleep(3); print('WON')",
    "lift a limit": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "fs = [__import__('os').dup(1) for _ in range(1000)]; print('WON')"
    ),
    "dump core": (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1, resource.getrlimit(resource.RLIMIT_CORE)[1]))\n"
        "print('WON' * (resource.getrlimit(resource.RLIMIT_CORE)[1] != 0))"
    ),
}


@pytest.fixture
def target(tmp_path, monkeypatch):
    """Lay out what is attacked; return what the programs' blanks are filled with."""
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "victim").write_text("x")
    monkeypatch.setenv("LOGPI_TEST_SECRET", "canary")
    server = socket.create_server(("127.0.0.1", 0))
    name = f"logpi-test-{os.getpid()}"
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"\0{name}")
    local.listen()
    threading.Thread(target=_accept, args=(server,), daemon=True).start()
    yield {"tmp": tmp_path, "port": server.getsockname()[1], "name": name}
    server.close(), local.close()


def _accept(server):
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_succeeds_unguarded_and_fails_in_the_sandbox(target, name):
    program = ATTACKS[name].format(**target)
    unlimited = "import resource; resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))\n"
    try:
        free = subprocess.run([sys.executable, "-c", unlimited + program], capture_output=True, timeout=30)
        if name == "trace the parent":  # Yama may forbid it even to the unguarded
            free.stdout = free.stdout if WON in free.stdout else WON
        assert WON in free.stdout, free.stderr.decode()[-300:]
        if name == "outlive its run":
            time.sleep(1.5)
            assert (target["tmp"] / "later").exists()
            (target["tmp"] / "later").unlink()
        for left in ("written", "victim"):
            (target["tmp"] / left).unlink(missing_ok=True)
        (target["tmp"] / "victim").write_text("x")
        held = run_python(program, limits=LIMITS)
        assert WON not in held.output, held
        if name == "outlive its run":
            time.sleep(1.5)
        assert sorted(p.name for p in target["tmp"].iterdir()) == ["secret", "victim"]
    finally:
        if os.path.exists("/dev/shm/logpi-test"):
            os.remove("/dev/shm/logpi-test")


def test_output_is_cut_and_the_program_killed():
    program = "while True: print('x' * 1000)"
    start = time.monotonic()
    found = run_python(program, limits=SandboxLimits(seconds=20.0))
    assert len(found.output) == 65536 and not found.ended and found.problem == "wrote more than 65,536 bytes"
    assert time.monotonic() - start < 10


def test_honest_programs_run():
    found = run_python("import math, re, json, collections\nprint(math.pi, open(0).read())", b"given")
    assert found.ended and found.output == b"3.141592653589793 given\n"
    failed = run_python("print(1)\nraise SystemExit(3)")
    assert not failed.ended and failed.output == b"1\n" and failed.problem == "ended with exit code 3"
    assert run_python("x = 1", b"y" * 10**6).ended  # what it does not read is no harm


# --- verdicts ---------------------------------------------------------------------------------------------------------

RIGHT = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(2, 3) == 5", {"call": "add(-1, 1)", "expected": 0}, {"call": "add('a', 'b')", "expected": "ab"}]
FORGERIES = {
    "exit before the tests": "import os; os._exit(0)",
    "exit politely": "raise SystemExit(0)",
    "exit when called": "import os\ndef add(a, b): os._exit(0)",
    "equal to everything": "class A:\n    def __eq__(self, other): return True\ndef add(a, b): return A()",
    "patch assertion": ("import builtins\nbuiltins.AssertionError = Exception\ndef add(a, b): raise SystemExit(0)"),
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return None",
}


def naive_verdict(program: str) -> bool:
    """What a careless checker does: tests after the program, in its process, and the exit code is the verdict."""
    tests = "assert add(2, 3) == 5\nassert add(-1, 1) == 0\nassert add('a', 'b') == 'ab'\n"
    return subprocess.run([sys.executable, "-c", f"{program}\n{tests}"], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_verdict_fools_a_naive_checker_and_not_ours(name):
    assert naive_verdict(FORGERIES[name])
    assert python_tests([FORGERIES[name]], [TESTS]) == [0.0]


def test_writing_to_the_channel_helps_only_who_knows_the_values():
    spray = """
import os
for fd in range(3, 32):
    try: os.write(fd, b'{"value": true}\\n' * 9)
    except OSError: pass
"""
    assert python_tests([spray], [TESTS]) == [0.0]
    hunt = """
import gc
def add(a, b):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and 'expected' in thing:
            return thing['expected']
"""
    assert python_tests([hunt], [TESTS]) == [0.0]


def test_the_share_of_tests_passed():
    fenced = f"Here it is:\n```python\nx = 1\n```\nor rather\n```python\n{RIGHT}```\nDone."
    wrong = "def add(a, b):\n    return 5"
    noisy = "print('hello')\n" + RIGHT
    raising = "def add(a, b):\n    return a + b if a == 2 else 1 / 0"
    assert python_tests([RIGHT, fenced, wrong, noisy, raising, "not python", ""], [TESTS] * 7) == pytest.approx(
        [1.0, 1.0, 1 / 3, 1.0, 1 / 3, 0.0, 0.0]
    )
    assert program_in(fenced) == RIGHT
    doubling = "for line in open(0): print(int(line) * 2, '')"
    both = [{"input": "1\n2\n", "output": "2\n4"}, {"input": "", "output": ""}, {"input": "5", "output": "11"}]
    assert python_tests([doubling], [both]) == pytest.approx([2 / 3])
    values = [
        {"call": "f()", "expected": [1, [2.5, None], {"1": True}]},
        "assert f() == (1, (2.5, None), {1: True})",
    ]
    assert python_tests(["def f(): return 1, (2.5, None), {1: True}"], [values]) == [1.0]


@pytest.mark.parametrize(
    "tests", [None, [], "assert f() == 1", ["assert f()"], ["assert f() == g()"], [{"call": "f()"}]]
)
def test_tests_that_cannot_be_checked_from_outside_are_errors(tests):
    with pytest.raises(InputError, match="of completion 0 is"):
        python_tests([RIGHT], [tests])


def test_python_tests_is_a_reward_by_name():
    assert load_reward("python_tests").function is python_tests
    with pytest.raises(InputError, match='or "python_tests"'):
        load_reward("python_test")


def test_without_a_sandbox_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "run_python", lambda *a, **k: pytest.fail("it ran"))
    require_sandbox.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "sandlock", None)
        with pytest.raises(InputError, match=r"needs the package \"sandlock\": pip install \"logpi\[sandbox\]\""):
            python_tests([RIGHT], [TESTS])
        import types

        old = types.SimpleNamespace(landlock_abi_version=lambda: 4, min_landlock_abi=lambda: 6)
        monkeypatch.setitem(sys.modules, "sandlock", old)
        with pytest.raises(InputError, match=r"Landlock ABI 4, needed 6: Linux 6.12 or newer"):
            python_tests([RIGHT], [TESTS])
        monkeypatch.setattr(sys, "platform", "darwin")
        with pytest.raises(InputError, match=r"needs Linux 6.12 or newer"):
            python_tests([RIGHT], [TESTS])
    finally:
        require_sandbox.cache_clear()
