"""V-trace: values and advantages from the trajectories of another policy (Espeholt et al. 2018, IMPALA)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logpi.estimators.generalised_advantage import values_and_next


def v_trace(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    log_ratios: Float[Tensor, "batch time"],
    gamma: float = 1.0,
    rho_cap: float = 1.0,
    c_cap: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """A_t = ρ_t (r_t + γ v_{t+1} − V(s_t)), ρ_t = min(ρ̄, π/μ), v of `v_trace_targets` (section 4.2).

    On-policy it is reward-to-go minus V, plus the bootstrap. Biased off-policy: the states come as often as μ visits
    them, and the cap moves what v estimates. Raises ValueError without values.
    """
    values, next_values = values_and_next(values, final_values, mask)
    targets = v_trace_targets(
        rewards, mask, group, values, final_values, log_ratios=log_ratios, gamma=gamma, rho_cap=rho_cap, c_cap=c_cap
    )
    is_last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    later = torch.where(is_last, next_values, torch.nn.functional.pad(targets[:, 1:], (0, 1)))
    rho = torch.exp(log_ratios).clamp(max=rho_cap)
    advantages = rho * (rewards + gamma * later - values)
    return torch.where(mask, advantages, torch.zeros_like(advantages)).detach()


def v_trace_targets(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    group: Int[Tensor, " batch"],
    values: Float[Tensor, "batch time"] | None = None,
    final_values: Float[Tensor, " batch"] | None = None,
    *,
    log_ratios: Float[Tensor, "batch time"],
    gamma: float = 1.0,
    rho_cap: float = 1.0,
    c_cap: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """v_s = V(s_s) + Σ_{t≥s} γ^{t−s} (Π_{s≤i<t} c_i) δ_t, δ_t = ρ_t (r_t + γ V(s_{t+1}) − V(s_t)), ρ = min(ρ̄, π/μ),
    c = min(c̄, π/μ) (equation 1). Its fixed point is the value of the policy ∝ min(ρ̄ μ, π)."""
    values, next_values = values_and_next(values, final_values, mask)
    ratios = torch.exp(log_ratios)
    deltas = ratios.clamp(max=rho_cap) * (rewards + gamma * next_values - values)
    deltas = torch.where(mask, deltas, torch.zeros_like(deltas))
    traces = torch.where(mask, ratios.clamp(max=c_cap), torch.zeros_like(ratios))
    out, later = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1] - 1, -1, -1):  # v_t − V_t = δ_t + γ c_t (v_{t+1} − V_{t+1})
        later = deltas[:, t] + gamma * traces[:, t] * later
        out[:, t] = later
    return torch.where(mask, values + out, torch.zeros_like(out)).detach()
