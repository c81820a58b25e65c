"""Algorithms of one's own: a function where the table has no such cell, and a row.

logpi prove --module examples/own_algorithm.py --algorithm sapo
logpi train smollm2-addition --module examples/own_algorithm.py --algorithm sapo
"""

import torch

from logpi.algorithms import Algorithm, register
from logpi.estimators import group_standardised
from logpi.losses import per_sequence, per_token, per_trajectory, sequence_ratio


def soft_gate(log_probs, old_log_probs, advantages, mask, *, tau: float = 1.0, tau_negative: float = 1.05):
    """ℓ = −(4/τ) σ(τ(r − 1)) A, r = π/π_old, another τ where A < 0 (SAPO, 2025, arXiv 2511.20347)."""
    temperature = torch.where(advantages < 0, tau_negative, tau).to(log_probs.dtype)
    ratio = torch.exp(log_probs - old_log_probs)
    return -4 / temperature * torch.sigmoid(temperature * (ratio - 1)) * advantages


def geometric_mean(log_probs, old_log_probs, advantages, mask, *, epsilon: float = 0.4):
    """ℓ = −exp(mean_t clip(log r_t)) A, clipped where it would gain (GMPO, 2025, arXiv 2507.20673)."""
    log_ratio = log_probs - old_log_probs
    clipped = torch.where(advantages > 0, log_ratio.clamp(max=epsilon), log_ratio.clamp(min=-epsilon))
    mean = torch.where(mask, clipped, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return -torch.exp(mean) * advantages


def masked_by_difference(log_probs, old_log_probs, advantages, mask, *, delta: float = 0.2):
    """ℓ = −r A, 0 where π left π_old by δ in the direction that A pushes (DPPO, Qi et al. 2026, arXiv 2602.04879)."""
    difference = log_probs.detach().exp() - old_log_probs.exp()
    keep = torch.where(advantages > 0, difference <= delta, difference >= -delta)
    return -torch.exp(log_probs - old_log_probs) * advantages * keep


def masked_by_distance(log_probs, old_log_probs, advantages, mask, *, delta: float = 0.3):
    """ℓ = −r A, 0 where |π − π_old| > δ (the IPO mask of prime-rl)."""
    keep = (log_probs.detach().exp() - old_log_probs.exp()).abs() <= delta
    return -torch.exp(log_probs - old_log_probs) * advantages * keep


def row(name, surrogate, reduction, source):
    register(Algorithm(name, group_standardised, surrogate, reduction, "k3_in_loss", source, uses_groups=True))


row("sapo", soft_gate, per_sequence, "2025, arXiv 2511.20347")
row("gmpo", geometric_mean, per_sequence, "2025, arXiv 2507.20673")
row("luspo", sequence_ratio, per_trajectory, "2026, arXiv 2602.05261: |y| cancels GSPO's 1/|y|")
row("dppo", masked_by_difference, per_token, "Qi et al. 2026, arXiv 2602.04879")
row("ipo", masked_by_distance, per_token, "prime-rl 2026")
