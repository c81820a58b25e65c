"""CartPole-v1 until it holds, against Stable-Baselines3's PPO and A2C and CleanRL's PPO.

`python benchmarks/cartpole.py --sb3 PYTHON [--cleanrl PYTHON cleanrl/ppo.py]`; the second interpreter needs torch,
gymnasium, tyro and tensorboard, the file is from a checkout of CleanRL.

Each side runs in a process of its own, in turns, on one thread. The clock runs from the process's start and stands
still in evaluations. A side is done when the sampled and the deterministic policy both have a mean return of 475 over
100 episodes at three checks in a row, a check each 2048 environment steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import HERE, report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sb3", required=True, help="an interpreter with stable-baselines3 (make judges makes one)")
    options.add_argument("--cleanrl", nargs=2, metavar=("PYTHON", "FILE"), help="CleanRL's ppo.py, and what runs it")
    options.add_argument("--seeds", default="0,1,2,3,4")
    options.add_argument("--output", type=Path, default=HERE / "cartpole.json")
    chosen = options.parse_args()
    peers = {f"sb3 {name}": [chosen.sb3, "cartpole_sb3.py", name] for name in ("ppo", "a2c")}
    if chosen.cleanrl:
        peers["cleanrl"] = [chosen.cleanrl[0], "cartpole_cleanrl.py", str(Path(chosen.cleanrl[1]).absolute())]
    found: dict[str, list[dict[str, Any]]] = {"logpi": [], **{name: [] for name in peers}}
    for seed in chosen.seeds.split(","):
        found["logpi"].append(logpi(seed))
        for name, (python, script, which) in peers.items():
            found[name].append(peer(python, script, which, seed))
        for side, rows in found.items():
            told = "did not hold" if rows[-1]["seconds"] is None else f"{rows[-1]['seconds']:.1f} s"
            print(f"seed {seed} {side:<8} {told}, {rows[-1]['steps']:,} environment steps", flush=True)
    for side, rows in found.items():
        seconds = sorted(float("inf") if row["seconds"] is None else row["seconds"] for row in rows)
        held = sum(row["seconds"] is not None for row in rows)
        median = statistics.median(seconds)
        print(f"{side:<8} held on {held} of {len(rows)}; median {median:.1f} s ({seconds[0]:.1f}-{seconds[-1]:.1f})")
    report({"rows": found}, chosen.output)


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def logpi(seed: str) -> dict[str, Any]:
    """Train the recipe as a user would; return seconds from the process's start, evaluations left out."""
    with tempfile.TemporaryDirectory(prefix="logpi-bench-") as folder:
        run, start = Path(folder) / "run", time.time()
        command = [sys.executable, "-m", "logpi", "train", "cartpole", "--seed", seed, "--run", str(run), "--json"]
        subprocess.run(command, env=ONE_THREAD, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        whole = time.time() - start
        summary = json.loads((run / "summary.json").read_text())
        timing = [json.loads(row) for row in (run / "timing.jsonl").read_text().splitlines()]
    evaluating = sum(row.get("evaluation_seconds", 0.0) for row in timing)
    seconds = whole - evaluating if summary["target_reached"] else None
    return {"seconds": seconds, "steps": summary["actions"], "evaluating": evaluating}


def peer(python: str, script: str, which: str, seed: str) -> dict[str, Any]:
    """Train a peer, the algorithm or file `which`; return what its side says."""
    command = [python, str(HERE / "sides" / script), which, seed, str(time.time())]
    found = subprocess.run(command, env=ONE_THREAD, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
