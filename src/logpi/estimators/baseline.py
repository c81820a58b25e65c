"""Advantages against a baseline that was known before the trajectory was sampled."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.masking import sum_over_time


def reward_minus_baseline(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A = R − b, b in `values`: the reward of the likeliest completion (Rennie et al. 2017, self-critical; Li et al.
    2023, ReMax) or a moving mean of earlier rewards (Williams 1992). Unbiased: b does not depend on the trajectory.
    Raises ValueError without a baseline."""
    if values is None:
        raise ValueError("this advantage needs a baseline in `values`")
    advantages = sum_over_time(rewards, mask)[:, None] - values
    return torch.where(mask, advantages, torch.zeros_like(advantages)).detach()
