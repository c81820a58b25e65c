"""Advantages of a trajectory against the others of its group: RLOO, GRPO and their relatives."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.masking import group_sums, sum_over_time


def leave_one_out(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A_i = R_i − (1/(G−1)) Σ_{j≠i} R_j, the same at each action (Kool et al. 2019; Ahmadian et al. 2024). Unbiased.

    Raises ValueError on a group of one: it has nothing to be compared with.
    """
    totals = sum_over_time(rewards, mask)
    sizes = _sizes(totals, group, "leave-one-out needs others")
    # R_i − mean of the others, written as a mean of differences so that equal rewards give exactly 0.
    advantages = _differences_to_group(totals, group) / (sizes - 1)
    return (advantages[:, None] * mask).detach()


def group_standardised(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    std_epsilon: float = 1e-4,
) -> Float[Tensor, "batch time"]:
    """A_i = (R_i − R̄) / (std + ε), mean and std (ddof 1) over the group, itself included (Shao et al. 2024).

    Biased: the mean includes the own reward (scale (G−1)/G) and the division re-weights prompts by their spread. Groups
    with equal rewards get 0. Raises ValueError on a group of one.
    """
    totals = sum_over_time(rewards, mask)
    sizes = _sizes(totals, group, "it has no standard deviation")
    centred = _differences_to_group(totals, group) / sizes
    squares, _ = group_sums(centred**2, group)
    std = torch.sqrt(squares / (sizes - 1))
    # 0/0 with ε = 0 stays 0; a NaN reward stays NaN
    advantages = torch.where(std == 0, centred, centred / (std + std_epsilon))
    return (advantages[:, None] * mask).detach()


def group_centred(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A_i = R_i − R̄, the group's mean with the own reward in it (Liu et al. 2025, Dr. GRPO). Exactly (G−1)/G times the
    gradient: its direction is unbiased. Raises ValueError on a group of one."""
    totals = sum_over_time(rewards, mask)
    sizes = _sizes(totals, group, "its mean is its own reward")
    return ((_differences_to_group(totals, group) / sizes)[:, None] * mask).detach()


def length_weighted_leave_one_out(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A_i = R_i − Σ_{j≠i} |y_j| R_j / Σ_{j≠i} |y_j| (Hao et al. 2025, OPO). Unbiased.

    Deviation from the paper: its baseline includes the own reward, which is biased; this one leaves it out. Raises
    ValueError on a group of one.
    """
    totals, lengths = sum_over_time(rewards, mask), mask.sum(1).to(rewards.dtype)
    _sizes(totals, group, "leave-one-out needs others")
    same = (group[:, None] == group[None, :]).to(rewards.dtype)
    others = (same - torch.eye(len(group), dtype=rewards.dtype)) * lengths
    # a weighted mean of differences, so that equal rewards give exactly 0
    advantages = (others * (totals[:, None] - totals[None, :])).sum(1) / others.sum(1)
    return (advantages[:, None] * mask).detach()


def relative_to_mean(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A_i = (R_i − R̄)/R̄, 0 where R̄ = 0, for rewards of 0 or more (Tajwar et al. 2026, MaxRL).

    With 0/1 rewards its mean is the exact gradient of log p to order G−1: Σ_{k<G} (1−p)^{k−1}·∇p, not that of p. Raises
    ValueError on a negative reward, or a group of one.
    """
    totals = sum_over_time(rewards, mask)
    sizes = _sizes(totals, group, "its mean is its own reward")
    if bool((totals < 0).any()):
        raise ValueError("a negative reward: dividing by the group's mean needs rewards of 0 or more; shift them")
    means = group_sums(totals, group)[0] / sizes
    centred = _differences_to_group(totals, group) / sizes
    return (torch.where(means == 0, centred, centred / means)[:, None] * mask).detach()


def group_centred_batch_standardised(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    std_epsilon: float = 1e-8,
) -> Float[Tensor, "batch time"]:
    """A_i = (R_i − R̄_group) / (std_batch(R − R̄) + ε), ddof 0, over trajectories (Hu et al. 2025, REINFORCE++-baseline).
    Biased; less so the larger the batch."""
    totals = sum_over_time(rewards, mask)
    sizes = _sizes(totals, group, "its mean is its own reward")
    centred = _differences_to_group(totals, group) / sizes
    std = centred.pow(2).mean().sqrt()
    return ((centred / (std + std_epsilon))[:, None] * mask).detach()


def batch_standardised(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    std_epsilon: float = 1e-8,
) -> Float[Tensor, "batch time"]:
    """A_i = (R_i − mean_batch R) / (std_batch R + ε), ddof 0, over trajectories (Hu et al. 2025, REINFORCE++). Biased;
    less so the larger the batch.

    Deviation from the paper's code: moments over trajectories, not over tokens, which would weigh long ones more.
    """
    totals = sum_over_time(rewards, mask)
    centred = (totals[:, None] - totals[None, :]).mean(1)
    std = centred.pow(2).mean().sqrt()
    return ((centred / (std + std_epsilon))[:, None] * mask).detach()


def _sizes(totals: Float[Tensor, " batch"], group: Int[Tensor, " batch"], why: str) -> Int[Tensor, " batch"]:
    """Return the size of each row's group. Raises ValueError, with the reason, on a group of one."""
    sizes = group_sums(totals, group)[1]
    if bool((sizes < 2).any()):
        raise ValueError(f"a group of one: {why}; raise num_generations to at least 2")
    return sizes


def _differences_to_group(totals: Float[Tensor, " batch"], group: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return Σ_j (R_i − R_j) over the group of i: exactly 0 when all rewards are equal, whatever the rounding."""
    same_group = group[:, None] == group[None, :]
    return torch.where(same_group, totals[:, None] - totals[None, :], torch.zeros((), dtype=totals.dtype)).sum(1)
