"""Rewards to advantages: what an algorithm's row asks for, filled into the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from logpi import losses
from logpi.algorithms import Algorithm, parameters_of
from logpi.masking import masked_mean
from logpi.trajectory import Batch, turns_of


def assign_credit(algorithm: Algorithm, batch: Batch, *, standardise: bool = False) -> Batch:
    """Fill in advantages, value targets and importance weights, with KL and entropy in the reward if the row has them.

    `standardise` divides centred advantages by their standard deviation over actions: a named bias, off by default.
    """
    rewards = batch.rewards
    log_probs = batch.policy_log_probs if batch.old_log_probs is None else batch.old_log_probs
    if algorithm.kl_in_reward:
        assert batch.reference_log_probs is not None
        kl = batch.kl_exact
        kl = algorithm.kl_terms(log_probs, batch.reference_log_probs, batch.mask) if kl is None else kl
        rewards = rewards - algorithm.beta * kl
    rewards = torch.where(batch.mask, rewards - algorithm.entropy_in_reward * log_probs, torch.zeros_like(rewards))
    log_ratios = log_probs - batch.behavior_log_probs
    data = {
        "actions": lambda: batch.actions,
        "log_probs": lambda: log_probs,
        "log_ratios": lambda: log_ratios,
        "given": lambda: batch.given,
        "turns": lambda: turns_of(batch),
    }

    def call(cell: Callable[..., Tensor]) -> Tensor:
        asked = {name: value() for name, value in data.items() if name in parameters_of(cell)}
        values = (batch.values, batch.final_values)
        return cell(rewards, batch.mask, batch.group, *values, **asked, **algorithm.options_of(cell))

    advantages, value_targets = call(algorithm.advantage), None
    if algorithm.uses_values and batch.values is not None:
        value_targets = call(algorithm.value_target) if algorithm.value_target else advantages + batch.values
    if standardise:
        advantages = standardise_over_actions(advantages, batch.mask)
    weights = (
        losses.importance_weights(log_ratios, batch.mask, **algorithm.importance) if algorithm.importance else None
    )
    return replace(batch, advantages=advantages, value_targets=value_targets, importance_weights=weights)


def standardise_over_actions(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return (A − mean)/(std + 1e-8) over the true entries of `mask`, zeros on padding."""
    mean = masked_mean(advantages, mask)
    variance = masked_mean((advantages - mean) ** 2, mask)
    return torch.where(mask, (advantages - mean) / (variance.sqrt() + 1e-8), torch.zeros_like(advantages))
