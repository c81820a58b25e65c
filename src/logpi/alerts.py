"""What a run's own record says is going wrong, each with what it means and what to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

WINDOW = 5  # steps in a row before something is said
Rows = Sequence[Mapping[str, Any]]


def _no_signal(rows: Rows, checks: Rows) -> str | None:
    if all(row["trained_fraction"] == 0 for row in rows[-WINDOW:]):
        return (
            f"no trajectory carried a gradient in {WINDOW} steps: rewards are equal in every group, nothing is learnt; "
            "take easier or harder prompts, a finer reward, or a larger rollout.num_generations"
        )
    return None


def _all_cut(rows: Rows, checks: Rows) -> str | None:
    if all(row["completions/clipped_ratio"] == 1 for row in rows[-WINDOW:]):
        return (
            f"every completion was cut at its limit in {WINDOW} steps: what is scored is unfinished; "
            "raise rollout.max_completion_length, or reward shorter answers"
        )
    return None


def _entropy_collapse(rows: Rows, checks: Rows) -> str | None:
    if rows[-1]["entropy"] < 0.02 * rows[0]["entropy"] and rows[-1]["frac_reward_zero_std"] > 0.5:
        return (
            f"entropy fell from {rows[0]['entropy']:.2f} to {rows[-1]['entropy']:.3f} nats and most groups agree: "
            "the policy has stopped exploring; lower learner.learning_rate, or set algorithm.beta"
        )
    return None


def _length_drift(rows: Rows, checks: Rows) -> str | None:
    first, last = rows[0]["completions/mean_length"], rows[-1]["completions/mean_length"]
    longer, shorter = last > 3 * first, 3 * last < first
    if (longer or shorter) and rows[-1]["reward"] <= rows[0]["reward"]:
        return (
            f"completions went from {first:.0f} to {last:.0f} tokens and the reward did not rise: see samples.jsonl; "
            "the loss's length weighting (algorithm) or the reward may favour length"
        )
    return None


def _reward_without_score(rows: Rows, checks: Rows) -> str | None:
    rise, scores = _rise(rows), [check["score"] for check in checks]
    if rise and len(scores) >= 3 and scores[-1] <= scores[0]:
        return (
            f"the reward rose from {rise[0]:.2f} to {rise[1]:.2f}, the held-out score did not ({scores[0]:.2f} to "
            f"{scores[-1]:.2f}): the policy learns what the reward says, not what you meant, or its prompts by heart"
        )
    return None


def _reward_without_judge(rows: Rows, checks: Rows) -> str | None:
    if (rise := _rise(rows)) is None or len(checks) < 2:
        return None
    for name in checks[-1].get("watched", ()):
        first, last = (check["metrics"][name] for check in (checks[0], checks[-1]))
        if last["high"] < first["low"]:
            return (
                f"the reward rose from {rise[0]:.2f} to {rise[1]:.2f} and {name}, which no reward pays for, fell from "
                f"{first['score']:.2f} to {last['score']:.2f}, beyond both intervals: the reward is being hacked; read "
                "samples.jsonl, raise algorithm.beta, or lower learner.learning_rate"
            )
    return None


def _rise(rows: Rows) -> tuple[float, float] | None:
    """Return the reward of the first and of the last steps, where it has risen clearly."""
    if len(rows) < 2 * WINDOW:
        return None
    before = sum(row["reward"] for row in rows[:WINDOW]) / WINDOW
    now = sum(row["reward"] for row in rows[-WINDOW:]) / WINDOW
    return (before, now) if now - before > 0.1 * max(1.0, abs(before)) else None


RULES: dict[str, Callable[[Rows, Rows], str | None]] = {
    "no signal": _no_signal,
    "all cut": _all_cut,
    "entropy collapse": _entropy_collapse,
    "length drift": _length_drift,
    "reward without score": _reward_without_score,
    "reward without judge": _reward_without_judge,
}


def alerts(rows: Rows, checks: Rows, said: set[str]) -> list[str]:
    """Return what is to be said after the last of a language model's steps, and add its names to `said`: each alert
    comes once. `rows` are those of metrics.jsonl, `checks` those of evaluations.jsonl."""
    if len(rows) < WINDOW:
        return []
    found = {name: text for name, rule in RULES.items() if name not in said and (text := rule(rows, checks))}
    said.update(found)
    return list(found.values())
