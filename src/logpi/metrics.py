"""A step in numbers. Names that TRL users know mean the same here. Only what config and seed determine: no clocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from logpi.trajectory import Batch, Trajectory


def reward_spread(totals: Tensor, group: Tensor) -> tuple[float, float]:
    """Return (mean over groups of the rewards' standard deviation, share of groups in which all rewards are equal)."""
    stds, equal = [], []
    for name in group.unique():
        members = totals[group == name]
        stds.append(float(members.std()) if len(members) > 1 else 0.0)
        equal.append(bool((members == members[0]).all()))
    return sum(stds) / len(stds), sum(equal) / len(equal)


def step_metrics(
    trajectories: Sequence[Trajectory], batch: Batch, gradients: Sequence[Any], norms: Sequence[float], experience: Any
) -> dict[str, Any]:
    """Return the step's metrics."""
    totals = batch.rewards.sum(1)
    std, zero_std = reward_spread(totals, batch.group)
    entropies = torch.cat([t.entropies for t in trajectories])
    lengths = batch.lengths.float()
    metrics: dict[str, Any] = {
        "reward": float(totals.mean()),
        "reward_std": std,
        "frac_reward_zero_std": zero_std,
        "entropy": float(entropies.mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": int(lengths.max()),
        "completions/clipped_ratio": float(batch.truncated.float().mean()),
        "num_tokens": int(batch.mask.sum()),
        "loss": sum(g.loss for g in gradients) / len(gradients),
        "grad_norm": sum(norms) / len(norms),
        "trained_fraction": sum(g.num_trained for g in gradients) / sum(g.num_trajectories for g in gradients),
        "mismatch/max": gradients[0].log_ratio_max,
        "mismatch/mean": gradients[0].log_ratio_mean,
        "clip_ratio/region_mean": sum(g.clip_fraction for g in gradients) / len(gradients),
    }
    if batch.reference_log_probs is not None:
        difference = torch.where(batch.mask, batch.behavior_log_probs - batch.reference_log_probs, 0.0)
        metrics["kl"] = float(difference.sum() / batch.mask.sum())
    if batch.values is not None:
        metrics["value_loss"] = sum(g.value_loss for g in gradients) / len(gradients)
    scores = getattr(experience, "last_scores", None)
    for name, values in (scores.by_name if scores is not None else {}).items():
        known = [value for value in values if value is not None]
        if known:
            metrics[f"rewards/{name}/mean"] = sum(known) / len(known)
    return metrics
