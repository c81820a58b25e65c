"""The tests, tested: each of the mistakes in mutations/mutations.toml must fail them."""

from __future__ import annotations

import compileall
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from models import NATIVE_BF16

import logpi

pytestmark = pytest.mark.timeout(1200)  # one fixture runs every mutation
HERE = Path(__file__).parent
SOURCE = Path(logpi.__file__).parent
MUTATIONS = tomllib.loads((HERE / "mutations" / "mutations.toml").read_text(encoding="utf-8"))["mutation"]
OPTIONS = [
    "-x",
    "-rf",
    "--tb=line",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore",
    "-c",
    str(HERE.parent / "pyproject.toml"),
]


def copied(source: Path, folder: Path, file: str | None = None, edits: list[list[str]] | None = None) -> Path:
    """Copy logpi below `folder`, with edits; each old text must be there exactly once. What is not edited stays
    compiled."""
    shutil.copytree(source, folder / "logpi")
    for old, new in edits or []:
        path = folder / "logpi" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {text.count(old)} times, not once: {old!r}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run the chosen tests on the unchanged copy and on every mutated one: name -> (exit status, output)."""
    root = tmp_path_factory.mktemp("mutations")
    unchanged = shutil.copytree(SOURCE, root / "logpi", ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(unchanged, quiet=1)
    chosen = defaultdict(set)
    possible = [m for m in MUTATIONS if NATIVE_BF16 or not m.get("native_bf16")]
    for mutation in possible:
        chosen[mutation["tests"][0]].add(f"({mutation['tests'][1]})")
    jobs, broken = {}, {}

    def add(name, tests, **change):
        folder = root / str(len(jobs) + len(broken))
        try:
            source = copied(unchanged, folder, **change)
        except AssertionError as error:
            broken[name] = (None, str(error))
            return
        file, selected = tests
        arguments = [str(HERE / file), "-k", selected, *OPTIONS]
        jobs[name] = {"source": str(source), "log": str(folder / "log"), "arguments": arguments}

    for file, selections in chosen.items():
        add(f"unchanged {file}", (file, " or ".join(sorted(selections))))
    for mutation in possible:
        add(mutation["name"], mutation["tests"], file=mutation["file"], edits=mutation["edits"])
    (root / "jobs.json").write_text(json.dumps(list(jobs.values())))
    command = [sys.executable, str(HERE / "mutations" / "run.py"), str(root / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout.splitlines()[-1])
    logs = [Path(job["log"]).read_text() for job in jobs.values()]
    return broken | dict(zip(jobs, zip(statuses, logs), strict=True))


@pytest.mark.parametrize("file", sorted({m["tests"][0] for m in MUTATIONS}))
def test_the_unchanged_copy_passes(outcomes, file):
    status, output = outcomes[f"unchanged {file}"]
    assert status == 0, output


NEEDS_BF16 = pytest.mark.skipif(not NATIVE_BF16, reason="this processor does not compute bfloat16 natively")


@pytest.mark.parametrize(
    "name", [pytest.param(m["name"], marks=[NEEDS_BF16] * m.get("native_bf16", False)) for m in MUTATIONS]
)
def test_a_mistake_fails_its_test(outcomes, name):
    status, output = outcomes[name]
    assert status is not None, output  # the mutation no longer fits the source
    assert status == 1, output  # tests ran, and at least one failed
    # ... by what it asserts, not because the mutated code crashed
    assert re.search(r"AssertionError|: assert |DID NOT RAISE", output), output
