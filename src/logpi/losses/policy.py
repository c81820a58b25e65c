"""Surrogates: per-token losses whose gradient is the policy gradient.

All share a signature: `(log_probs, old_log_probs, advantages, mask, *, options) -> loss`, [batch, time] each. At
log_probs = old_log_probs the gradient is −A ∇log π, for `sequence_ratio` with the mean of ∇log π over the trajectory.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def score_function(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """ℓ = −log π · A (Williams 1992): no correction for samples of an older policy."""
    return -log_probs * advantages


def importance_ratio(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """ℓ = −(π/π_old) · A: token-level importance weights, unclipped."""
    return -torch.exp(log_probs - old_log_probs) * advantages


def clipped_ratio(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
) -> Float[Tensor, "*shape"]:
    """ℓ = −min(r A, clip(r, 1−ε, 1+ε_high) A), r = π/π_old (Schulman et al. 2017, equation 7).

    With one update per rollout r is 1 and the clip can't bind: the gradient is that of `score_function`.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high))
    return -torch.minimum(ratio * advantages, clipped * advantages)


def sequence_ratio(
    log_probs: Float[Tensor, "batch time"],
    old_log_probs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    epsilon: float = 3e-4,
    epsilon_high: float | None = 4e-4,
) -> Float[Tensor, "batch time"]:
    """ℓ = −min(s A, clip(s, 1−ε, 1+ε_high) A), s = (π(y)/π_old(y))^(1/|y|), the same at each action (Zheng et al. 2025,
    GSPO).

    Summed with weights 1/(B|y|) it is the mean over trajectories. On-policy its gradient is A times the *mean* score:
    length-biased like GRPO.
    """
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    log_ratio = torch.where(mask, log_probs - old_log_probs, torch.zeros_like(log_probs)).sum(1, keepdim=True) / lengths
    return clipped_ratio(
        log_ratio.expand_as(log_probs), torch.zeros_like(log_probs), advantages, mask,
        epsilon=epsilon, epsilon_high=epsilon_high,
    )  # fmt: skip


def weighted_score_function(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    epsilon_high: float = 5.0,
) -> Float[Tensor, "*shape"]:
    """ℓ = −sg(min(π/π_old, ε_high)) · A · log π (MiniMax 2025, CISPO, without its lower clip).

    The weight is detached: no action loses its gradient to the clip, its size is bounded instead. ε_high = 5 is from
    ScaleRL (Khatri et al. 2025).
    """
    weight = torch.exp(log_probs.detach() - old_log_probs).clamp(max=epsilon_high)
    return -weight * advantages * log_probs
