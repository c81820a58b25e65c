"""Advantages from sampled rewards alone: REINFORCE in its three forms.

Deviation from the discounted objective's exact gradient: with gamma < 1 the factor gamma^t in front of each score is
left out, as nearly everywhere (Thomas 2014, "Bias in natural actor-critic algorithms", says what that costs).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.masking import group_sums, reverse_cumulative_sum, sum_over_time


def total_reward(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A_t = R = Σ_k r_k, the trajectory's whole reward at each action (Williams 1992). Unbiased."""
    return (sum_over_time(rewards, mask)[:, None] * mask).detach()


def own_reward(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A_t = r_t, the reward to go at γ = 0: for demonstrations, where each action's reward is 1 whatever follows."""
    return torch.where(mask, rewards, 0.0).detach()


def reward_to_go(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """A_t = Σ_{k≥t} γ^{k−t} r_k: rewards from before an action can't be its doing. gamma=1 is unbiased."""
    return reverse_cumulative_sum(rewards, mask, gamma).detach()


def reward_to_go_leave_one_out(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """A_t = G_t − b_t, G_t the reward to go, b_t its mean over the *other* trajectories of the group running at t.

    b_t does not depend on the trajectory's own actions, so the estimate stays unbiased. Where no other one is running
    the baseline is the mean over all times of the others that ran, or 0 in a group of one.
    """
    returns = reverse_cumulative_sum(rewards, mask, gamma)
    sums, _ = group_sums(returns * mask, group)
    counts, _ = group_sums(mask.to(returns.dtype), group)
    num_others = counts - mask.to(returns.dtype)
    others = (sums - returns * mask) / num_others.clamp(min=1)
    row_total, row_count = sum_over_time(returns, mask), mask.sum(1).to(returns.dtype)
    group_total, _ = group_sums(row_total, group)
    group_count, _ = group_sums(row_count, group)
    fallback = (group_total - row_total) / (group_count - row_count).clamp(min=1)
    baseline = torch.where(num_others > 0, others, fallback[:, None])
    return ((returns - baseline) * mask).detach()
