"""Sampled estimates of KL(π ‖ π_ref) per token (Schulman 2020, "Approximating KL divergence").

What each one's *gradient* is, when put into a loss, differs from what its value estimates; the docstrings say it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def kl_k1(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k1 = log π − log π_ref. Unbiased value; in the reward its gradient is exact, in a loss it is zero on average."""
    return log_probs - reference_log_probs


def kl_k2(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k2 = ½ (log π − log π_ref)². Biased value; its gradient in a loss is that of the immediate reverse KL."""
    return 0.5 * (log_probs - reference_log_probs) ** 2


def kl_k3(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k3 = exp(q) − q − 1 ≥ 0, q = log π_ref − log π. Unbiased value; its gradient in a loss is the *forward* KL's."""
    log_ratio = reference_log_probs - log_probs
    return torch.expm1(log_ratio) - log_ratio
