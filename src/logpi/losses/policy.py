"""Surrogates: per-token losses whose gradient is the policy gradient.

All share a signature: `(log_probs, old_log_probs, advantages, *, options) -> loss`, [batch, time] each. At
log_probs = old_log_probs all three have the gradient −A ∇log π.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def score_function(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """ℓ = −log π · A (Williams 1992): no correction for samples of an older policy."""
    return -log_probs * advantages


def importance_ratio(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """ℓ = −(π/π_old) · A: token-level importance weights, unclipped."""
    return -torch.exp(log_probs - old_log_probs) * advantages


def clipped_ratio(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
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
