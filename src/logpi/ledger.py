"""What was trained against what was planned: each prompt exactly as often as the plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def balance(
    samples: Iterable[Mapping[str, Any]],
    plan: Callable[[int], list[int]],
    num_prompts: int,
    num_generations: int,
    steps: range,
) -> dict[str, Any]:
    """Compare the rows of samples.jsonl with the plan (step -> prompt uids) of these steps: its first `num_prompts`,
    and as many of the spare ones behind them as the step's rows are enough for.

    Returns the counts, and up to 8 `differences`: a completion of a step that is missing, twice there, or not planned.
    `left_out`: completions that were sampled as planned, but no reward function gave them a number.
    """
    trained = [row for row in samples if not row.get("is_baseline")]
    rows = [(row["step"], row["prompt_uid"], row["sample"], row.get("reward", 1) is None) for row in trained]
    found = Counter(row[:3] for row in rows)
    taken = {
        step: max(num_prompts, round(count / num_generations)) for step, count in Counter(r[0] for r in rows).items()
    }
    planned = Counter(
        (step + 1, uid, sample)
        for step in steps
        for uid, times in Counter(plan(step)[: taken.get(step + 1, num_prompts)]).items()
        for sample in range(times * num_generations)
    )
    wrong = sorted(key for key in found | planned if found[key] != planned[key])
    return {
        "prompts": planned.total() // num_generations,
        "completions": planned.total(),
        "left_out": sum(row[3] for row in rows),
        "as_planned": not wrong,
        "differences": [
            f"step {step}, prompt {uid}, sample {sample}: {found[key]} times, planned {planned[key]}"
            for key in wrong[:8]
            for step, uid, sample in [key]
        ],
    }
