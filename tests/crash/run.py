"""Run logpi's command many times, each in a fork of one process that has everything imported: `run.py JOBS.json`.

A job is {"arguments", "folder", "log"} and how its first start is to end: {"kill_at": k}, with "torn" or "power_cut",
or {"fail_at": k}, or {"after": seconds}; then the same command runs to its end. Prints the outcomes as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path

from supervise import supervise

AT_ONCE = 2


def command(job: dict) -> int:
    """Run logpi's command line in this process; return its exit code."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from logpi import cli

    try:
        cli.main(job["arguments"])
    except SystemExit as exit:
        sys.stdout.flush()
        return int(exit.code or 0)
    return 0


def work(job: dict) -> dict:
    """Do a job; return what happened."""
    folder = Path(job["folder"])
    options = {key: job[key] for key in ("kill_at", "fail_at", "torn", "power_cut") if key in job}
    outcome: dict = {}
    if "after" in job:
        outcome["first"] = killed_after(job, job["after"])
    elif options:
        first = supervise(lambda: command(job), folder, **options)
        hit = None if first.hit is None else [first.hit.call, *first.hit.paths]
        outcome |= {"first": first.status, "hit": hit, "num_events": len(first.events)}
    start = time.monotonic()
    last = supervise(lambda: command(job), folder)
    calls = [[event.call, *event.paths] for event in last.events]
    seconds = time.monotonic() - start
    return outcome | {"last": last.status, "events": calls if not outcome else len(calls), "seconds": seconds}


def killed_after(job: dict, seconds: float) -> int:
    """Start the command, kill it after a time; return how it ended."""
    process = os.fork()
    if process == 0:
        status = 71
        try:
            status = command(job)
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def outcome_file(job: dict) -> Path:
    """Return where a job's outcome goes; a pipe would fill up with a long run's calls."""
    return Path(job["log"] + ".outcome")


def main(jobs: list[dict]) -> list[dict]:
    """Run all jobs, two at a time; return their outcomes in order."""
    outcomes: list[dict] = [{} for _ in jobs]
    running: dict[int, int] = {}  # process: index of its job

    def reap() -> None:
        index = running.pop(os.wait()[0])
        file = outcome_file(jobs[index])
        outcomes[index] = json.loads(file.read_text()) if file.exists() else {"error": "the job died"}

    for index, job in enumerate(jobs):
        if len(running) == AT_ONCE:
            reap()
        process = os.fork()
        if process == 0:
            try:
                try:
                    result = work(job)
                except Exception as error:
                    result = {"error": f"{type(error).__name__}: {error}"}
                outcome_file(job).write_text(json.dumps(result))
            finally:
                os._exit(0)
        running[process] = index
    while running:
        reap()
    return outcomes


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gymnasium.envs.classic_control.cartpole  # noqa: F401
    import peft  # noqa: F401
    import torch
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # a job's collections pass over what all share
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
