"""Log-probs and advantages to a loss per token: pure, differentiable functions of tensors.

The sign is turned here, once: surrogates are objectives (to be climbed), losses are their negatives (to be descended).
A loss per token is summed with `token_weights`, which hold the global denominator: any split into micro-batches adds up
to the same loss and gradient.
"""

from logpi.losses.importance import importance_weights
from logpi.losses.kl import kl_k1, kl_k2, kl_k2_of_sequence, kl_k3
from logpi.losses.policy import (
    clipped_ratio,
    importance_ratio,
    score_function,
    sequence_ratio,
    weighted_score_function,
)
from logpi.losses.reductions import per_budget, per_sequence, per_token, per_trajectory
from logpi.losses.value import squared_error

__all__ = [
    "clipped_ratio",
    "importance_ratio",
    "importance_weights",
    "kl_k1",
    "kl_k2",
    "kl_k2_of_sequence",
    "kl_k3",
    "per_budget",
    "per_sequence",
    "per_token",
    "per_trajectory",
    "score_function",
    "sequence_ratio",
    "squared_error",
    "weighted_score_function",
]
