"""Minimum risk training: a gradient over the samples themselves, renormalised."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.masking import group_sums, sum_over_time


def minimum_risk(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    actions: Int[Tensor, "batch time"],
    log_probs: Float[Tensor, "batch time"],
    sharpness: float = 0.005,
) -> Float[Tensor, "batch time"]:
    """A_i = α G Q_i (R_i − Σ_j Q_j R_j), Q ∝ π(y)^α over the *different* completions of the group (Shen et al. 2016,
    arXiv 1512.02433, section 3, with the reward in the place of minus the loss).

    Summed with weights 1/G that is α Σ_i Q_i (R_i − E_Q R) ∇log π(y_i), the gradient of E_Q[R]. A completion that came
    n times counts once: each copy gets 1/n of it. α = `sharpness`. Exact for α = 1 over all completions; over sampled
    ones biased (Choshen et al. 2020). Raises ValueError on a group of one.
    """
    totals, sizes = sum_over_time(rewards, mask), group_sums(torch.ones_like(rewards[:, 0]), group)[1]
    if bool((sizes < 2).any()):
        raise ValueError("a group of one: minimum risk compares completions; raise num_generations to at least 2")
    own = torch.where(mask, actions, torch.full_like(actions, -1))
    same_group = group[:, None] == group[None, :]
    copies = (same_group & (own[:, None] == own[None, :]).all(-1)).sum(1)
    scores = sharpness * sum_over_time(log_probs, mask)
    highest = torch.where(same_group, scores[None, :], torch.full_like(scores[None, :], -torch.inf)).amax(1)
    shares = torch.exp(scores - highest) / copies
    shares = shares / group_sums(shares, group)[0]
    mean = group_sums(shares * totals, group)[0]
    return ((sharpness * shares * sizes * (totals - mean))[:, None] * mask).detach()
