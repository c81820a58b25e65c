"""MIXER: the likelihood of given tokens, and the reward of the drawn ones behind them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.estimators.group import leave_one_out


def mixed_likelihood(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    given: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """A_t = 1 where the solution gave the token, R_i − (1/(G−1)) Σ_{j≠i} R_j where it was drawn (Ranzato et al. 2016,
    MIXER, section 3.2.2).

    With weights 1/trajectories that is the exact gradient of Σ_{t≤k} log π(y*_t) + E[R(y*_{≤k}, y)], y drawn behind the
    first k tokens of the solution y*, where a group shares them. Raises ValueError on a group of one.
    """
    advantages = leave_one_out(rewards, mask, group)
    return torch.where(given & mask, torch.ones_like(advantages), advantages)
