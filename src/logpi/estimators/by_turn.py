"""Generalised advantage estimation where a turn, a whole message of the policy, is one action."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.estimators.generalised_advantage import generalised_advantage, values_and_next


def generalised_advantage_by_turn(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    turns: Int[Tensor, "batch time"],
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> Float[Tensor, "batch time"]:
    """A_k = Σ_l (γλ)^l δ_{k+l}, δ_k = r_k + γ V_{k+1} − V_k, the same at each action of turn k (Schulman et al. 2015,
    equation 16, over turns): r_k is the sum of the turn's rewards, V_k the value where it begins.

    γ and λ count turns, not tokens. One turn gives R − V of the prompt, whatever λ. Unbiased for λ=1 with any V, and
    for λ<1 with the exact V only. Raises ValueError without values.
    """
    advantages, _ = _of_turns(rewards, mask, group, values, final_values, turns, gamma, gae_lambda)
    return _at_actions(advantages, turns, mask)


def turn_targets(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    turns: Int[Tensor, "batch time"],
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> Float[Tensor, "batch time"]:
    """Return A_k + V_k at each action of turn k: all of a turn's values learn what it came to. Raises ValueError
    without values."""
    advantages, starts = _of_turns(rewards, mask, group, values, final_values, turns, gamma, gae_lambda)
    return _at_actions(advantages + starts, turns, mask)


def _at_actions(
    of_turns: Float[Tensor, "batch time"], turns: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Return at each action what its turn has, detached, zeros on padding."""
    found = of_turns.gather(1, torch.where(mask, turns, torch.zeros_like(turns)))
    return torch.where(mask, found, torch.zeros_like(found)).detach()


def _of_turns(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None,
    final_values: Float[Tensor, " batch"] | None,
    turns: Int[Tensor, "batch time"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Return (advantage, value at the start) of each turn, [batch, turn], turn k in column k."""
    values, _ = values_and_next(values, final_values, mask)
    turns = torch.where(mask, turns, torch.zeros_like(turns))
    begins = mask & (torch.nn.functional.pad(turns[:, :-1], (1, 0), value=-1) != turns)
    sums = torch.zeros_like(values).scatter_add(1, turns, torch.where(mask, rewards.to(values.dtype), 0.0))
    starts = torch.zeros_like(values).scatter_add(1, turns, torch.where(begins, values, 0.0))
    exists = torch.arange(mask.shape[1]) < begins.sum(1, keepdim=True)
    advantages = generalised_advantage(sums, exists, group, starts, final_values, gamma=gamma, gae_lambda=gae_lambda)
    return advantages, starts
