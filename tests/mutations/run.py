"""Run pytest once a job, each in a process of its own: `run.py JOBS.json` with {"source", "log", "arguments"} each.

What is slow to import and never mutated is imported once; a job is a fork of that, so it costs its tests alone. logpi
comes from the job's `source`, and the job fails (exit status 70) if it does not. Prints the exit statuses as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

AT_ONCE = 2


def work(job: dict) -> int:
    """Run a job's tests in this process; return pytest's exit status."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path.insert(0, job["source"])
    import pytest

    import logpi

    if not Path(logpi.__file__).is_relative_to(job["source"]):
        return 70
    status = pytest.main(job["arguments"])
    sys.stdout.flush()
    return int(status)


def main(jobs: list[dict]) -> list[int]:
    """Run all jobs, two at a time; return their exit statuses in order."""
    statuses: dict[int, int] = {}
    running: dict[int, int] = {}
    for index, job in enumerate(jobs):
        while len(running) == AT_ONCE:
            reap(running, statuses)
        process = os.fork()
        if process == 0:
            status = 71
            try:
                status = work(job)
            finally:
                os._exit(status)
        running[process] = index
    while running:
        reap(running, statuses)
    return [statuses[i] for i in range(len(jobs))]


def reap(running: dict[int, int], statuses: dict[int, int]) -> None:
    """Wait until one of the running jobs ends and note its status."""
    process, status = os.wait()
    statuses[running.pop(process)] = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    import beartype  # noqa: F401
    import cyclopts  # noqa: F401
    import gymnasium  # noqa: F401
    import jaxtyping  # noqa: F401
    import peft  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import torch
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # a job's collections pass over what all share
    assert not any(name.split(".")[0] == "logpi" for name in sys.modules)
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
