"""Sampled estimates of KL(π ‖ π_ref) per token (Schulman 2020, "Approximating KL divergence").

What each one's *gradient* is, in the reward or in the loss, differs from what its value estimates: see the docstrings.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kl_k1(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k1 = log π − log π_ref. Unbiased value. In the reward its gradient is the exact one of KL(π‖π_ref) of sequences;
    in the loss it is zero on average: noise and nothing else."""
    return log_probs - reference_log_probs


def kl_k2(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k2 = ½ (log π − log π_ref)². Biased value. In the loss its gradient is that of KL(π‖π_ref) in each visited state,
    without the part by which actions lead to other states; in the reward it is no KL's."""
    return 0.5 * (log_probs - reference_log_probs) ** 2


def kl_k3(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k3 = exp(q) − q − 1 ≥ 0, q = log π_ref − log π. Unbiased value. In the loss its gradient is that of the *forward*
    KL(π_ref‖π) in each visited state; in the reward it is no KL's."""
    log_ratio = reference_log_probs - log_probs
    return torch.expm1(log_ratio) - log_ratio


def kl_k2_of_sequence(
    log_probs: Float[Tensor, "batch time"],
    reference_log_probs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """½ (Σ_t log π − log π_ref)², an equal share at each action. In the loss, summed with weights 1/trajectories, its
    gradient is the exact one of the sequence's KL(π‖π_ref)."""
    difference = torch.where(mask, log_probs - reference_log_probs, torch.zeros_like(log_probs))
    total = difference.sum(1, keepdim=True)
    return 0.5 * total**2 / mask.sum(1, keepdim=True).clamp(min=1) * mask
