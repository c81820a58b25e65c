"""A step in numbers. Names that TRL users know mean the same here. Only what config and seed determine: no clocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from logpi.learner import Update
from logpi.trajectory import Batch, Trajectory


def reward_spread(totals: Tensor, group: Tensor) -> tuple[float, float]:
    """Return (mean over groups of the rewards' standard deviation, share of groups in which all rewards are equal)."""
    stds, equal = [], []
    for name in group.unique():
        members = totals[group == name]
        stds.append(float(members.std()) if len(members) > 1 else 0.0)
        equal.append(bool((members == members[0]).all()))
    return sum(stds) / len(stds), sum(equal) / len(equal)


def demonstration_metrics(
    trajectories: Sequence[Trajectory], batch: Batch, updates: Sequence[Update]
) -> dict[str, Any]:
    """Return the metrics of a step by maximum likelihood: nothing was sampled, so the loss means what it says."""
    (update,) = updates
    metrics: dict[str, Any] = {
        "loss": update.gradient.loss,
        "grad_norm": update.norm,
        "num_tokens": int(batch.mask.sum()),
    }
    return metrics | _skips(updates)


def _skips(updates: Sequence[Update]) -> dict[str, Any]:
    skipped = [u.skipped for u in updates if u.skipped]
    return {"skipped_updates": len(skipped), "skipped_because": skipped[0]} if skipped else {}


def step_metrics(trajectories: Sequence[Trajectory], batch: Batch, updates: Sequence[Update]) -> dict[str, Any]:
    """Return the step's metrics: of all trajectories, of the scored ones, of the optimiser's updates. Groups of equal
    rewards that spare prompts replaced are sampled and scored: they count, though the batch does not have them."""
    trajectories = [t for t in trajectories if not t.is_baseline]
    scored = [(t.rewards.sum(), t.group) for t in trajectories if t.rewards is not None]
    totals = torch.stack([total for total, _ in scored])
    std, zero_std = reward_spread(totals, torch.tensor([group for _, group in scored]))
    lengths = [len(t) for t in trajectories]
    gradients = [u.gradient for u in updates]

    def mean(values: Iterable[float]) -> float:
        values = list(values)
        return sum(values) / len(values)

    metrics: dict[str, Any] = {
        "reward": float(totals.mean()),
        "reward_std": std,
        "frac_reward_zero_std": zero_std,
        "entropy": float(torch.cat([t.entropies[t.num_given :] for t in trajectories]).nanmean()),
        "completions/mean_length": mean(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": mean(float(t.truncated) for t in trajectories),
        "num_tokens": sum(lengths),
        "loss": mean(g.loss for g in gradients),
        "grad_norm": mean(u.norm for u in updates),
        "trained_fraction": sum(g.num_trained for g in gradients) / sum(g.num_trajectories for g in gradients),
        "mismatch/max": gradients[0].log_ratio_max,
        "mismatch/mean": gradients[0].log_ratio_mean,
        "clip_ratio/region_mean": mean(g.clip_fraction for g in gradients),
    }
    if len(scored) < len(trajectories):
        metrics["completions/unscored_ratio"] = 1 - len(scored) / len(trajectories)
    metrics |= _skips(updates)
    if not bool((batch.weights == 1).all()):
        metrics["prompt_weights/effective_ratio"] = float(
            batch.weights.sum() ** 2 / batch.weights.square().sum()
        ) / len(batch)
    if batch.reference_log_probs is not None:
        difference = torch.where(batch.mask, batch.policy_log_probs - batch.reference_log_probs, 0.0)
        metrics["kl"] = float(difference.sum() / batch.mask.sum())
    if batch.values is not None:
        metrics["value_loss"] = mean(g.value_loss for g in gradients)
    for name in dict.fromkeys(name for t in trajectories for name in t.rewards_by_name):
        known = [value for t in trajectories if (value := t.rewards_by_name.get(name)) is not None]
        if known:
            metrics[f"rewards/{name}/mean"] = mean(known)
    return metrics
