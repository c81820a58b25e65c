"""Seconds to a held-out score: `python benchmarks/seconds_to_score.py --trl PYTHON [OPTION …]`.

logpi and TRL's GRPO on the same task, prompts a step, completions and length limit, a process each, one after the
other. First each side tries every rate for the same number of steps; problems that are set aside for this score it, and
are not trained on. Then each runs at the rate that scored best, seed by seed, on the task's own held-out problems. The
clock runs from the process's start, imports and loading included, and stands still in evaluations. A side has passed
when the lower end of the 95 % interval of greedy accuracy (with `--draws`, of draws) is at the target at two checks in
a row; its time is that of the first of them. Options `--section.key value` of `logpi train` go to both sides. What is
in the output file is not run again: budgets that take days can be spent in parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import ANSWER, HERE, machine

from logpi.overrides import split_overrides
from logpi.policies.model_folder import find

RATES = "1e-6,3e-6,1e-5,3e-5,1e-4"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument("--trl", required=True, help="an interpreter with trl (make judges: .venv-judges/bin/python)")
    options.add_argument("--model", default="smollm2-q4")
    options.add_argument("--task", default="smollm2-addition", help="a recipe: its task and lengths count")
    options.add_argument("--rates", default=RATES, help="learning rates, with commas between them")
    options.add_argument("--trial-steps", type=int, default=6, help="of each rate on each side")
    options.add_argument("--seeds", default="0,1,2,3,4")
    options.add_argument("--prompts", type=int, default=16, help="a step")
    options.add_argument("--generations", type=int, default=8)
    options.add_argument("--target", type=float, default=0.7, help="of the interval's lower end")
    options.add_argument("--every", type=int, default=2, help="steps between checks")
    options.add_argument("--limit", type=float, default=1800, help="seconds, after which a side has failed")
    options.add_argument("--draws", action="store_true", help="score by draws: a search, a choice among many")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--output", type=Path, default=HERE / "seconds_to_score.jsonl")
    chosen, fixed = options.parse_known_args()
    if unknown := split_overrides(fixed)[0]:
        options.error(f"unknown: {' '.join(unknown)}; options of logpi train are given as --section.key value")
    model = str(find(chosen.model, weights=True).location)
    work = {
        "task": chosen.task,
        "model": chosen.model,
        "fixed": fixed,
        "prompts": chosen.prompts,
        "generations": chosen.generations,
        "threads": chosen.threads,
        "draws": chosen.draws,
        "checkpointing": False,  # TRL's faster setting where memory allows it
    }
    usual = {"model": "smollm2-q4", "draws": False}  # of rows from before there was a choice
    scripts = {"logpi": (sys.executable, "score_logpi.py"), "trl": (chosen.trl, "score_trl.py")}

    def found(side: str, rate: str, seed: str, **how: Any) -> dict[str, Any]:
        wanted = {**work, "side": side, "rate": float(rate), "seed": int(seed), **how}
        for row in known(chosen.output):
            if all(row.get(key, usual.get(key)) == value for key, value in wanted.items()):
                break
        else:
            asked = {**wanted, "model": model, "every": chosen.every, "limit": chosen.limit, "start": time.time()}
            row = {**wanted, **run(*scripts[side], asked), "machine": machine()}
            with chosen.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)
        return row

    rates = chosen.rates.split(",")
    best = dict.fromkeys(scripts, rates[0])
    if len(rates) > 1:
        score: dict[str, dict[str, float]] = {side: {} for side in scripts}
        for rate, side in itertools.product(rates, scripts):
            score[side][rate] = found(side, rate, "0", trial_steps=chosen.trial_steps)["scores"][-1]
        best = {side: max(rates, key=score[side].__getitem__) for side in scripts}  # of equals the lowest
        print("best rates:", best, flush=True)
    pairs = [
        [found(side, best[side], seed, target=chosen.target) for side in scripts] for seed in chosen.seeds.split(",")
    ]
    print(table(pairs))


def known(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def run(python: str, script: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Run one side to its end; return its answer."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(asked["threads"])}
    command = [python, str(HERE / "sides" / script), json.dumps(asked)]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for text in found.stdout.splitlines():
        if text.startswith(ANSWER):
            return json.loads(text.removeprefix(ANSWER))
    raise SystemExit(f"{script} ended without an answer: run it by hand to see why: {json.dumps(asked)}")


def table(pairs: list[list[dict[str, Any]]]) -> str:
    """Return a Markdown table of (logpi, TRL) seed by seed: seconds, and their ratio as the product that it is. A side
    that failed took at least as long as it ran."""
    lines = [
        "| seed | logpi | TRL | sooner | = a completion | × completions | tokens | peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios = []
    for ours, theirs in pairs:
        seconds = [row["seconds"] or row["startup"] + row["trained_seconds"] for row in (ours, theirs)]
        told = [f"{'' if row['seconds'] else 'over '}{value:.0f} s" for row, value in zip((ours, theirs), seconds)]
        ratio, completions = seconds[1] / seconds[0], theirs["completions"] / ours["completions"]
        ratios.append(ratio if ours["seconds"] else 0.0)
        cells = [
            str(ours["seed"]),
            *told,
            *(f"×{value:.1f}" for value in (ratio, ratio / completions, completions)),
            f"{ours['tokens']}, {theirs['tokens']}",
            f"{ours['peak_gb']:.1f}, {theirs['peak_gb']:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, f"\nmedian of {len(ratios)} seeds: ×{statistics.median(ratios):.1f}"])


def line(row: dict[str, Any]) -> str:
    """Say how a side did: seconds, and what they are the product of."""
    told = f"{row['trial_steps']} steps of trial" if "trial_steps" in row else "failed"
    if row["seconds"] is not None:
        told = f"{row['seconds']:.0f} s, of them {row['startup']:.0f} s until the first step"
    each = row["trained_seconds"] / max(1, row["trained_completions"])
    return (
        f"{row['task']} {row['side']:<6} rate {row['rate']:g} seed {row['seed']}: {told}; {row['completions']} "
        f"completions at {each:.3f} s, {row['tokens']} tokens, peak {row['peak_gb']:.1f} GB; scores {row['scores']}"
    )


if __name__ == "__main__":
    main()
