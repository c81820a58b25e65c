"""What each action counts in the loss: `(mask, *, options) -> token_weights`, [batch, time] -> [batch, time].

The mask is that of all trajectories behind one optimiser step, so the denominator is global by construction.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def per_trajectory(mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """1/B: sum over actions, mean over trajectories. The exact policy gradient's own weighting: no length bias."""
    return mask.to(torch.float64) / mask.shape[0]


def per_token(mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """1/Σ|o_i|: mean over all actions (Yu et al. 2025, DAPO). A ratio estimator; its bias vanishes with the batch."""
    return mask.to(torch.float64) / mask.sum().clamp(min=1)


def per_sequence(mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """1/(B |o_i|): mean over a trajectory's actions, then over trajectories (Shao et al. 2024). Length-biased."""
    weights = mask.to(torch.float64)
    return weights / mask.sum(1, keepdim=True).clamp(min=1) / mask.shape[0]


def per_budget(mask: Bool[Tensor, "batch time"], *, budget: float = 256.0) -> Float[Tensor, "batch time"]:
    """1/(B L), L a constant (Liu et al. 2025, Dr. GRPO: the longest completion allowed). The exact gradient's weighting
    up to the constant 1/L."""
    return mask.to(torch.float64) / mask.shape[0] / budget
