"""Advantages of a trajectory against the others of its group: RLOO and GRPO."""

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
    _, sizes = group_sums(totals, group)
    if bool((sizes < 2).any()):
        raise ValueError("a group of one: leave-one-out needs at least 2 generations a prompt; raise num_generations")
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
    _, sizes = group_sums(totals, group)
    if bool((sizes < 2).any()):
        raise ValueError("a group of one has no standard deviation: raise num_generations to at least 2")
    centred = _differences_to_group(totals, group) / sizes
    squares, _ = group_sums(centred**2, group)
    std = torch.sqrt(squares / (sizes - 1))
    # 0/0 with ε = 0 stays 0; a NaN reward stays NaN
    advantages = torch.where(std == 0, centred, centred / (std + std_epsilon))
    return (advantages[:, None] * mask).detach()


def _differences_to_group(totals: Float[Tensor, " batch"], group: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return Σ_j (R_i − R_j) over the group of i: exactly 0 when all rewards are equal, whatever the rounding."""
    same_group = group[:, None] == group[None, :]
    return torch.where(same_group, totals[:, None] - totals[None, :], torch.zeros((), dtype=totals.dtype)).sum(1)
