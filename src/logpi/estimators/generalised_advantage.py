"""Advantages from rewards and a value function: generalised advantage estimation, and n-step returns."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.masking import reverse_cumulative_sum


def generalised_advantage(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> Float[Tensor, "batch time"]:
    """A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) − V(s_t) (Schulman et al. 2015, equation 16).

    V after the last action is `final_values`: 0 where the trajectory terminated, the value of the state where it was
    cut where it was truncated. λ=1 is reward-to-go minus V (plus the bootstrap); λ=0 is one-step TD. Unbiased for λ=1
    with any V, and for λ<1 with the exact V only. Raises ValueError without values.
    """
    values, next_values = values_and_next(values, final_values, mask)
    deltas = torch.where(mask, rewards + gamma * next_values - values, torch.zeros_like(values))
    return reverse_cumulative_sum(deltas, mask, gamma * gae_lambda).detach()


def n_step_advantage(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    gamma: float = 1.0,
    n_steps: int = 5,
) -> Float[Tensor, "batch time"]:
    """A_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t), shorter where the trajectory ends (Mnih et al. 2016, A3C).

    The end counts 0 where it terminated, V where it was cut. Unbiased where n reaches the end, or with the exact V.
    Raises ValueError without values.
    """
    values, next_values = values_and_next(values, final_values, mask)
    is_last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    returns = rewards + gamma * next_values  # of one step
    for _ in range(int(n_steps) - 1):  # R^(k+1)_t = r_t + γ R^(k)_{t+1}
        later = torch.nn.functional.pad(returns[:, 1:], (0, 1))
        returns = rewards + gamma * torch.where(is_last, next_values, later)
    return torch.where(mask, returns - values, torch.zeros_like(returns)).detach()


def values_and_next(
    values: Float[Tensor, "batch time"] | None,
    final_values: Float[Tensor, " batch"] | None,
    mask: Bool[Tensor, "batch time"],
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Return (V before each action, V after it: `final_values` after the last). Raises ValueError without values."""
    if values is None or final_values is None:
        raise ValueError("this advantage needs a value function; pick a policy with a value head")
    is_last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    return values, torch.where(is_last, final_values[:, None].to(values.dtype), next_values)
