"""Cells of the table in one line each, for a run's record and its first screen."""

from __future__ import annotations

from collections.abc import Callable

_FORMULAS = {
    "score_function": "log π·A",
    "importance_ratio": "(π/π_old)·A",
    "clipped_ratio": "min(r·A, clip(r, 1−ε, 1+ε_high)·A), r = π/π_old",
    "total_reward": "A_t = R",
    "own_reward": "A_t = r_t",
    "reward_to_go": "A_t = Σ_{k≥t} γ^{k−t} r_k",
    "reward_to_go_leave_one_out": "A_t = G_t − mean of the others' G_t",
    "leave_one_out": "A = R_i − mean of the others' R",
    "group_standardised": "A = (R_i − mean R)/(std R + ε_std)",
    "generalised_advantage": "A_t = Σ_l (γλ)^l δ_{t+l}",
    "n_step_advantage": "A_t = Σ_{k<n} γ^k r_{t+k} + γ^n V_{t+n} − V_t",
    "group_centred": "A = R_i − mean R",
    "length_weighted_leave_one_out": "A = R_i − the others' mean R, weighted by length",
    "relative_to_mean": "A = (R_i − mean R)/mean R",
    "batch_standardised": "A = (R_i − batch mean)/(batch std + ε_std)",
    "group_centred_batch_standardised": "A = (R_i − mean R)/(batch std + ε_std)",
    "sequence_ratio": "min(s·A, clip(s, 1−ε, 1+ε_high)·A), s = (π/π_old)^(1/length)",
    "weighted_score_function": "sg(min(π/π_old, ε_high))·log π·A",
    "reward_minus_baseline": "A = R − b",
    "minimum_risk": "A = αG·Q_i·(R_i − Σ_j Q_j R_j), Q ∝ π^α",
    "mixed_likelihood": "A_t = 1 on given tokens, R_i − mean of the others' R on drawn ones",
    "generalised_advantage_by_turn": "A_t = Σ_l (γλ)^l δ_{k+l} of t's turn k, δ_k = r_k + γ V_{k+1} − V_k",
    "v_trace": "A_t = ρ_t(r_t + γv_{t+1} − V_t), v by V-trace",
    "per_budget": "w = 1/(trajectories·budget)",
    "per_trajectory": "w = 1/trajectories",
    "per_token": "w = 1/all tokens",
    "per_sequence": "w = 1/(trajectories·own length)",
}


def formula_of(cell: Callable) -> str:
    """Return a cell in one line: ours from the table above, another by its name."""
    return _FORMULAS.get(cell.__name__, f"{cell.__name__}(…)")
