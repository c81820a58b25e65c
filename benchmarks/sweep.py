"""What options do to a score: `python benchmarks/sweep.py RECIPE --grid learner.learning_rate=1e-5,1e-4 [--seeds 0,1]`.

Runs a recipe once for each combination of the grids' values and each seed, with the other options given as they are to
`logpi train`, and appends a row for each to a file: the held-out score at each evaluation, and seconds. What the file
has is not run again: a sweep can be spent in parts, or by two processes with grids of their own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from seconds_to_score import known
from side_by_side import HERE, machine


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("recipe")
    options.add_argument("--grid", action="append", default=[], help="OPTION=VALUE,VALUE,.. of `logpi train`")
    options.add_argument("--seeds", default="0")
    options.add_argument("--threads", default="1")
    options.add_argument("--output", type=Path, default=HERE / "sweep.jsonl")
    chosen, fixed = options.parse_known_args()
    grids = [(name, values.split(",")) for name, _, values in (grid.partition("=") for grid in chosen.grid)]
    for *values, seed in itertools.product(*(values for _, values in grids), chosen.seeds.split(",")):
        work = {"recipe": chosen.recipe, "fixed": fixed, "seed": int(seed),
                "options": dict(zip((name for name, _ in grids), values))}  # fmt: skip
        done = [row for row in known(chosen.output) if all(row[key] == work[key] for key in work)]
        if not done:
            done = [{**work, **run(work, chosen.threads), "machine": machine()}]
            with chosen.output.open("a") as file:
                file.write(json.dumps(done[0]) + "\n")
        print(line(done[0]), flush=True)


def run(work: dict[str, Any], threads: str) -> dict[str, Any]:
    """Run one combination to its end; return what its folder says."""
    with tempfile.TemporaryDirectory(prefix="logpi-sweep-") as name:
        folder = Path(name) / "run"
        given = [word for option, value in work["options"].items() for word in (f"--{option}", value)]
        command = [sys.executable, "-m", "logpi", "train", work["recipe"], *work["fixed"], *given]
        command += ["--seed", str(work["seed"]), "--threads", threads, "--run", str(folder), "--checkpoint.every-steps"]
        ended = subprocess.run([*command, "1000000"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if ended.returncode:
            raise SystemExit(f"{line(work)} failed: {ended.stderr.strip()}")
        checks = [json.loads(row) for row in (folder / "evaluations.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
    return {
        "scores": [round(check["score"], 4) for check in checks],
        "last": [round(checks[-1][key], 4) for key in ("score", "low", "high")],
        "seconds": round(summary["seconds"], 1),
    }


def line(row: dict[str, Any]) -> str:
    """Say which combination it is, and what came of it."""
    told = " ".join(
        [row["recipe"], *(f"{name}={value}" for name, value in row["options"].items()), f"seed {row['seed']}"]
    )
    if "last" not in row:
        return told
    score, low, high = row["last"]
    return f"{told}: {score:.3f} [{low:.3f}, {high:.3f}] in {row['seconds']} s; {row['scores']}"


if __name__ == "__main__":
    main()
