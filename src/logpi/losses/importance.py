"""Importance weights: samples of one policy for the gradient of another. All weights are detached."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LEVELS = ("token", "sequence", "prefix")


def importance_weights(
    log_ratios: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    level: str = "sequence",
    cap: float | None = 2.0,
    floor: float = 0.0,
    masked: bool = False,
) -> Float[Tensor, "batch time"]:
    """w = π/μ from log_ratios = log π − log μ of each action, μ the policy that sampled it.

    level "token": w_t = ρ_t, biased: it ignores how the states came about. "sequence": w_t = Π_k ρ_k, exact without a
    cap. "prefix": w_t = Π_{k≤t} ρ_k, exact without a cap where the advantage is the reward to come (or Q). Products are
    sums of logs. `cap` bounds the weight (truncated: less variance, some bias; Ionides 2008); with `masked` a weight
    over the cap or under the floor becomes 0 instead (Liu et al. 2025: masked importance sampling). Denominators stay
    what they are: a masked action counts as one without a gradient.
    """
    logs = torch.where(mask, log_ratios, torch.zeros_like(log_ratios)).detach()
    if level == "sequence":
        logs = logs.sum(1, keepdim=True).expand_as(logs)
    elif level == "prefix":
        logs = logs.cumsum(1)
    weights = torch.exp(logs)
    high = float("inf") if cap is None else cap
    if masked:
        weights = torch.where((weights >= floor) & (weights <= high), weights, torch.zeros_like(weights))
    else:
        weights = weights.clamp(floor, high)
    return torch.where(mask, weights, torch.zeros_like(weights))
