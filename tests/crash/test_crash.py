"""Killed at the k-th write, rename or flush, and started again by the same command, a run ends as if nothing had been.

`make test` takes a sample of the points, `make test-slow` all of them.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kinds import KINDS, arguments, digests, prepare

from logpi.errors import InputError

HERE = Path(__file__).parent
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="seccomp"), pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("crash")
    prepare(root)
    return root


def play(root: Path, jobs: list[dict], steps: int = 3) -> list[dict]:
    """Do the jobs ({"kind", how the first start ends}); return them with their outcomes and folders."""
    for job in jobs:
        job["name"] = "-".join(key if value is True else f"{key}-{value}" for key, value in job.items())
        run = root / job["name"] / "run"
        run.parent.mkdir()  # by us, so that every run makes the same calls
        job |= {"folder": str(run), "log": f"{root}/{job['name']}.log"}
        job["arguments"] = arguments(root, job["kind"], run, steps)
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(HERE / "run.py"), str(root / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [job | outcome for job, outcome in zip(jobs, json.loads(done.stdout.splitlines()[-1]), strict=True)]


@pytest.fixture(scope="module")
def whole(root):
    """Return, for each kind, the calls of a run that nothing interrupts, and the digests of what it leaves."""
    jobs = play(root, [{"kind": kind, "whole": True} for kind in KINDS])
    for job in jobs:
        assert job.get("last") == 0, Path(job["log"]).read_text()
    return {job["kind"]: (job["events"], digests(Path(job["folder"]))) for job in jobs}


def check(whole, jobs: list[dict], first: tuple[int, ...] = (-9,)) -> None:
    """Assert that every job ended its first start as it should, and its second one like the whole run."""
    faults = []
    for job in jobs:
        folder = Path(job["folder"])
        if job.get("first") not in first or job.get("last") != 0:
            ends = [job.get(key) for key in ("error", "first", "last", "hit")]
            faults.append(f"{job['name']}: error, first end, last end, hit: {ends}")
        elif different := [n for n, d in digests(folder).items() if whole[job["kind"]][1].get(n) != d]:
            faults.append(f"{job['name']}: killed at {job['hit']}, then different: {', '.join(different)}")
        elif left := [str(p.relative_to(folder)) for p in folder.rglob(".tmp-*")]:
            faults.append(f"{job['name']}: killed at {job['hit']}, then left over: {', '.join(left)}")
        elif not json.loads((folder / "summary.json").read_text())["ledger"]["as_planned"]:
            faults.append(f"{job['name']}: the ledger is not as planned")
    assert not faults, f"{len(faults)} of {len(jobs)}:\n" + "\n".join(faults[:20])


def points(whole, kind: str, calls: tuple[str, ...] = (), sample: int | None = None) -> list[int]:
    """Return the indices of a kind's calls (all, or those of these names), or an even sample of them."""
    found = [index for index, event in enumerate(whole[kind][0]) if not calls or event[0] in calls]
    return found if sample is None else found[:: max(1, len(found) // sample)][:sample]


def reached(jobs: list[dict]) -> None:
    """Assert that the kills reached a checkpoint's files, its flush and its rename."""
    hits = [(job["hit"][0], " ".join(job["hit"][1:])) for job in jobs if job.get("hit")]
    for call in ("write", "fsync", "rename"):
        assert any(c.startswith(call) and "checkpoints/" in paths for c, paths in hits), f"no {call} of a checkpoint"


WRITES = ("write", "pwrite64", "writev")
FEWER = ("turns", "tagger", "sft-tagger", "pretrain-masked")  # sampled less: they write as the others do


def killed(whole, every: bool) -> list[dict]:
    """Return the jobs: SIGKILL at a call, in the middle of a write, and with a power cut."""
    jobs = []
    for kind in KINDS:
        many, few = (None, None) if every else (3, 1) if kind in FEWER else (6, 2)
        jobs += [{"kind": kind, "kill_at": k} for k in points(whole, kind, sample=many)]
        jobs += [{"kind": kind, "kill_at": k, "torn": True} for k in points(whole, kind, WRITES, few)]
        jobs += [{"kind": kind, "kill_at": k, "power_cut": True} for k in points(whole, kind, sample=few)]
    if not every:  # a sample may miss what matters most
        named = [("write", ".tmp"), ("renameat", "state"), ("fsync", "manifest"), ("rename", "step-00000002")]
        for call, text in named:
            calls = [(e[0], " ".join(e[1:])) for e in whole["full"][0]]
            k = next(i for i, (c, paths) in enumerate(calls) if c == call and "checkpoints/" in paths and text in paths)
            jobs.append({"kind": "full", "kill_at": k, "named": True})
    return jobs


def test_killed_at_a_sample_of_its_calls_a_run_ends_as_if_nothing_had_been(root, whole):
    jobs = play(root, killed(whole, every=False))
    assert len(jobs) >= 40
    reached(jobs)
    check(whole, jobs)


def test_a_full_disk_stops_a_run_that_then_goes_on(root, whole):
    """From the k-th write on, every write finds the disk full: exit code 4 (2 where it has not begun), and no harm."""
    jobs = play(root, [{"kind": "full", "fail_at": k} for k in (0, 1, 4, 9, 14, 20, 26)])
    for job in jobs:
        assert "full" in Path(job["log"]).read_text().split("error: ")[1].split("\n")[0], job["name"]
    check(whole, jobs, first=(2, 4))


@pytest.mark.slow
def test_killed_at_every_call(root, whole):
    jobs = play(root, killed(whole, every=True))
    assert len(jobs) >= 200
    reached(jobs)
    check(whole, jobs)
    print(f"{len(jobs)} points")


@pytest.mark.slow
def test_a_full_disk_at_every_write(root, whole):
    num_writes = {kind: len(points(whole, kind, WRITES)) for kind in KINDS}
    jobs = play(root, [{"kind": kind, "fail_at": k} for kind in KINDS for k in range(num_writes[kind])])
    check(whole, jobs, first=(2, 4))
    print(f"{len(jobs)} points")


@pytest.mark.slow
def test_killed_at_random_times_of_longer_runs(tmp_path):
    prepare(tmp_path, steps=12)
    whole, seconds = {}, {}
    for job in play(tmp_path, [{"kind": kind, "whole": True} for kind in KINDS], steps=12):
        whole[job["kind"]] = (job["events"], digests(Path(job["folder"])))
        seconds[job["kind"]] = job["seconds"]
    draw = random.Random(0)
    jobs = [{"kind": kind, "after": round(draw.uniform(0.02, seconds[kind]), 4)} for _ in range(48) for kind in KINDS]
    jobs = [job | {"hit": None} for job in play(tmp_path, jobs, steps=12)]
    assert sum(job["first"] == -9 for job in jobs) >= 100  # the others had already ended
    check(whole, jobs, first=(-9, 0))


@pytest.mark.slow
def test_smollm2_killed_at_five_points(tmp_path):
    from logpi.policies.embedded import embedded_folder

    try:
        embedded_folder()
    except InputError as error:
        pytest.skip(str(error))
    (job,) = play(tmp_path, [{"kind": "smollm2", "whole": True}])
    assert job["last"] == 0, Path(job["log"]).read_text()
    whole = {"smollm2": (job["events"], digests(Path(job["folder"])))}
    calls = [(e[0], " ".join(e[1:])) for e in job["events"]]
    named = [
        ("fsync", "journal/.tmp-step-00000001"),
        ("write", "checkpoints/.tmp-step-00000001"),
        ("write", "samples.jsonl"),
        ("rename", "checkpoints/step-00000002"),
        ("write", ".tmp-final"),
    ]
    kills = [next(i for i, (c, paths) in enumerate(calls) if c == call and text in paths) for call, text in named]
    for kill in kills:  # one after the other: each holds three checkpoints of 1.6 GB
        jobs = play(tmp_path, [{"kind": "smollm2", "kill_at": kill, "torn": True}])
        check(whole, jobs)
        shutil.rmtree(Path(jobs[0]["folder"]))
