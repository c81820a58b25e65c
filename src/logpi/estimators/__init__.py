"""Rewards to advantages: pure functions of tensors.

All share a signature: `(rewards, mask, group, values, final_values, *, options) -> advantages`, shapes [batch, time],
[batch, time] bool, [batch], [batch, time] or None, [batch] or None. Advantages come back detached, [batch, time], zero
on padding.
"""

from logpi.estimators.generalised_advantage import generalised_advantage, n_step_advantage
from logpi.estimators.group import (
    batch_standardised,
    group_centred,
    group_centred_batch_standardised,
    group_standardised,
    leave_one_out,
    length_weighted_leave_one_out,
    relative_to_mean,
)
from logpi.estimators.monte_carlo import reward_to_go, reward_to_go_leave_one_out, total_reward

__all__ = [
    "batch_standardised",
    "generalised_advantage",
    "group_centred",
    "group_centred_batch_standardised",
    "group_standardised",
    "leave_one_out",
    "length_weighted_leave_one_out",
    "n_step_advantage",
    "relative_to_mean",
    "reward_to_go",
    "reward_to_go_leave_one_out",
    "total_reward",
]
