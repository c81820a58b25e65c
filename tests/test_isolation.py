"""Rewards in child processes: the time limit holds, one failure is one completion's, nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import logpi
from logpi.errors import InputError, RewardError
from logpi.tasks.base import Reward
from logpi.tasks.isolation import IsolatedFunction, Limits, apply_limits, isolate, location_of
from logpi.tasks.reward_loading import load_reward
from logpi.tasks.rewarding import score

SOURCE = """
import os, subprocess, sys, time

def act(completions, answer, **columns):
    (text,), (gold,) = completions, answer
    if text == "hang":
        child = subprocess.Popen(["sleep", "600"])
        open(gold, "w").write(f"{os.getpid()} {child.pid}")
        while True: pass
    if text == "hang after closing everything":
        os.closerange(0, 3)
        time.sleep(600)
    if text == "die": os._exit(7)
    if text == "raise": raise ValueError("no idea")
    if text == "nan": return [float("nan")]
    if text == "none": return [None]
    if text == "two": return [1.0, 2.0]
    if text == "flood":
        for _ in range(2000): print("x" * 1000)
    if text == "stdin": return [float(len(sys.stdin.read()))]
    if text == "channel":  # whatever the reward starts can't speak for it
        done = subprocess.run(["sh", "-c", "for fd in 3 4 5 6 7 8 9; do echo '{\\"value\\": 9}' >&$fd; done"],
                              close_fds=False, stderr=subprocess.DEVNULL)
    if text == "pid": return [float(os.getpid())]
    if text == "vandal":
        os.chdir("/"); os.environ["HOME"] = "elsewhere"
        import random; random.seed(0)
    return [float(len(text))]
"""


@pytest.fixture
def reward(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text(SOURCE)
    made = []

    def make(**limits) -> Reward:
        made.append(isolate(load_reward(f"{file}:act"), Limits(**{"timeout_seconds": 20.0, **limits})))
        return made[-1]

    yield make
    for one in made:
        one.function.close()


def scores(reward, *texts, answer="", **options):
    columns = {"answer": [answer] * len(texts)}
    return score([reward], ["p"] * len(texts), list(texts), [[1]] * len(texts), columns, **options)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_end(pids, within_seconds=5.0):
    """Return whether the processes are gone, or soon will be: a SIGKILL takes effect after `kill` returns."""
    deadline = time.monotonic() + within_seconds
    while any(is_running(int(pid)) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(is_running(int(pid)) for pid in pids)


def test_children_give_what_the_function_gives(reward):
    one = reward()
    assert scores(one, "", "a", "none", "bbb").total == [0.0, 1.0, None, 3.0]
    one.function.close()
    assert scores(one, "a").total == [1.0]  # closing ends the children, not the function


def test_one_that_hangs_is_killed_with_what_it_started_and_the_others_are_scored(reward, tmp_path):
    note = tmp_path / "pids"
    start = time.monotonic()
    found = scores(reward(timeout_seconds=1.0), "a", "hang", "bb", "ccc", answer=str(note), on_failure="exclude")
    assert time.monotonic() - start < 15
    assert found.total == [1.0, None, 2.0, 3.0]
    assert found.failures == {1: 'reward "act": completion 1: took longer than 1 s'}
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2 and all_end(pids)


def test_one_that_closes_its_channels_and_hangs_is_killed_too(reward):
    found = scores(reward(timeout_seconds=1.0), "hang after closing everything", "a", on_failure="exclude")
    assert found.total == [None, 1.0] and "took longer than 1 s" in found.failures[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hang after closing everything", "took longer than 0.5 s"),
        ("die", "died with exit code 7"),
        ("raise", "raised ValueError: no idea"),
        ("nan", "completion 0 got nan; return a finite number"),
        ("two", "returned 2 values for 1 completions"),
    ],
)
def test_a_failure_is_an_error_or_excluded_as_asked_and_never_a_silent_zero(reward, text, message):
    failing = reward(timeout_seconds=0.5)
    with pytest.raises(RewardError, match='reward "act": completion 1: ') as found:
        scores(failing, "a", text, "ccc")
    assert message in str(found.value)
    excluded = scores(failing, "a", text, "ccc", on_failure="exclude")
    assert excluded.total == [1.0, None, 3.0], excluded.failures
    assert message in excluded.failures[1]
    with pytest.raises(RewardError, match="every completion of the batch failed"):
        scores(failing, text, on_failure="exclude")


def test_in_process_failures_follow_the_same_policy():
    def act(completions):
        if "raise" in completions:
            raise ValueError("no idea")
        return [float("nan") if text == "nan" else float(len(text)) for text in completions]

    plain = Reward("act", act)
    found = scores(plain, "a", "nan", "raise", "bb", on_failure="exclude")
    assert found.total == [1.0, None, None, 2.0]
    assert "got nan" in found.failures[1] and "raised ValueError: no idea" in found.failures[2]
    with pytest.raises(RewardError, match="raised ValueError"):
        scores(plain, "a", "raise")


def test_what_a_reward_prints_reads_and_leaks_reaches_nobody(reward):
    one = reward(num_workers=1)
    assert scores(one, "flood", "stdin", "channel").total == [5.0, 0.0, 7.0]
    before = os.getcwd(), os.environ.get("HOME")
    assert scores(one, "vandal").total == [6.0]
    assert (os.getcwd(), os.environ.get("HOME")) == before


def test_a_child_is_replaced_after_so_many_calls(reward):
    pids = scores(reward(num_workers=1, max_calls=2), *["pid"] * 6).total
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]
    time.sleep(0.1)
    assert all_end(set(pids))


def test_it_works_off_the_main_thread(reward):
    found = []
    one = reward()
    thread = threading.Thread(target=lambda: found.append(scores(one, "a", "bb").total))
    thread.start()
    thread.join(60)
    assert found == [[1.0, 2.0]]


def test_a_column_that_cannot_be_sent_is_said(reward):
    with pytest.raises(InputError, match='reward "act": a column can\'t be sent to a child process'):
        scores(reward(), "a", answer=object())


def test_only_what_a_child_can_import_can_be_isolated():
    def local(completions):
        return [0.0]

    with pytest.raises(InputError, match="define it at the top level of a file"):
        location_of(local)
    with pytest.raises(InputError, match="define it at the top level of a file"):
        location_of(lambda completions: [0.0])
    assert location_of(scores) == f"{Path(__file__).resolve()}:scores"
    from logpi.tasks.arithmetic import strict

    assert location_of(strict) == "logpi.tasks.arithmetic:strict"


def test_a_reward_marked_untrusted_is_isolated_unasked():
    @logpi.untrusted
    def act(completions):
        return [0.0]

    with pytest.raises(InputError, match="top level of a file"):
        list(apply_limits([Reward("act", act)], None))
    from logpi.tasks.arithmetic import strict

    assert next(apply_limits([Reward("strict", strict)], None)).function is strict
    (limited,) = apply_limits([Reward("strict", strict)], Limits())
    assert isinstance(limited.function, IsolatedFunction)


SCRIPT = """
import logpi
def act(completions, **columns):
    return [1.0 for _ in completions]
logpi.train(model="{model}", data="{data}", rewards=act, run="{run}", max_steps=1, reward={{"timeout_seconds": 5}})
"""


def test_a_script_that_trains_when_imported_is_told_so(tmp_path):
    import models

    (tmp_path / "q.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+2="}\n{"prompt": "1+3="}\n')
    model = models.write(tmp_path / "model", "llama")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(model=model, data=tmp_path / "q.jsonl", run=tmp_path / "run"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'put what trains under if __name__ == "__main__":' in done.stderr
    assert not (tmp_path / "run").exists()


def test_children_die_with_a_killed_parent(tmp_path):
    (tmp_path / "rewards.py").write_text(SOURCE)
    program = f"""
import time
from logpi.tasks.isolation import Limits, isolate
from logpi.tasks.reward_loading import load_reward
from logpi.tasks.rewarding import score
reward = isolate(load_reward({str(tmp_path / "rewards.py") + ":act"!r}), Limits(num_workers=1))
print(int(score([reward], ["p"], ["pid"], [[1]], {{"answer": [""]}}).total[0]), flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)
